"""Numbers as text, in one form on the whole page."""

import math


def percent(share: float | None, digits: int = 1) -> str:
    r"""Return a fraction in percent; a dash if it is unknown.

    Example:
        >>> percent(0.4567), percent(None)
        ('45.7\xa0%', '–')
    """
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def count(number: float | None) -> str:
    """Return a whole number; a dash if it is unknown.

    Example:
        >>> count(12936.0), count(None)
        ('12,936', '–')
    """
    return "–" if number is None or math.isnan(number) else f"{number:,.0f}"


def points(difference: float | None) -> str:
    """Return a difference of two fractions in percentage points.

    Example:
        >>> points(0.1234), points(-0.05)
        ('+12.3', '-5.0')
    """
    return "–" if difference is None else f"{100 * difference:+.1f}"


def duration(seconds: float | None) -> str:
    """Return a time in the largest unit that suits.

    Example:
        >>> duration(4.25), duration(600), duration(9000)
        ('4.2 s', '10.0 min', '2.5 h')
    """
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
