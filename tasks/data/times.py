"""Times as users and programs write them: seconds, larger counts since 1970, and dates with a year first."""

import re
from datetime import UTC, datetime

from pul_core.errors import DataError

# Smallest time since 1970 in each unit smaller than a second, and units per second. Each range reaches from 2001 to 2286.
UNITS = ((1e12, 1e3), (1e15, 1e6), (1e18, 1e9))
LARGEST_SECONDS = 1e11
SMALLEST_COMPACT_DATE = 19_000_101  # January 1, 1900
COMPACT_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:(?:[01]\d|2[0-3])(?:[0-5]\d){1,2})?(?:\.0*)?")
DATE = re.compile(  # EXIF separates the parts of a date by colons
    r"(?P<year>\d{4})(?P<mark>[-/:.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})"
    r"(?:[T ]\s*(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2})?)?",
    re.IGNORECASE,
)
ADVICE = "write seconds, or a date and time such as 2026-01-31T12:00:05"


def parse_timestamp(text: str, origin: str) -> float | None:
    """Parse a time from a user's file.

    A number is in seconds, from any origin. Numbers of 13, 16 and 19 digits are milliseconds, microseconds and nanoseconds since 1970.
    Dates have the year first and are in UTC unless they have an offset.

    Returns:
        Seconds; None for an empty text.

    Raises:
        DataError: the text is none of these, or ambiguous.

    Example:
        >>> parse_timestamp("2.5", ""), parse_timestamp("1970-01-01T00:01:00", ""), parse_timestamp("1769860805000", "")
        (2.5, 60.0, 1769860805.0)
    """
    if text == "":
        return None
    try:
        number = float(text.replace("_", " "))  # Python reads 12_0005 as a number
    except ValueError:
        return _parse_date(text, origin)
    if abs(number) < SMALLEST_COMPACT_DATE:
        return number
    if COMPACT_DATE.fullmatch(text):
        raise DataError(f"{origin}: {text!r} may be a date or a number of seconds: write a date as 2026-01-31T12:00:05")
    for smallest, units_per_second in UNITS:
        if smallest <= number < 10 * smallest:
            return number / units_per_second
    if not abs(number) < LARGEST_SECONDS:
        raise DataError(f"{origin}: {text!r} is not a time of this century in seconds, milliseconds, microseconds or nanoseconds: {ADVICE}")
    return number


def _parse_date(text: str, origin: str) -> float:
    match = DATE.fullmatch(text)
    try:
        if match is None:
            moment = datetime.fromisoformat(text)  # the other forms of ISO 8601, e.g. 20260131T120005
        else:
            year, month, day, hour, minute, second = (
                int(match[name] or 0) for name in ("year", "month", "day", "hour", "minute", "second")
            )
            zone = (match["zone"] or "Z").upper().replace("UTC", "Z").replace("GMT", "Z")
            fraction = (match["fraction"] or "0").ljust(6, "0")[:6]
            moment = datetime.fromisoformat(f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction}{zone}")
    except ValueError:
        reason = "is not a time"
        if re.match(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b", text):
            reason = "does not begin with the year, and the order of day and month differs between countries"
        elif re.match(r"\d{1,2}:\d{2}", text):
            reason = "has no date"
        raise DataError(f"{origin}: {text!r} {reason}: {ADVICE}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
