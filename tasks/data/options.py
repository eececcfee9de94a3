"""Replaces `--layout` and `--pattern` in advice about a data set by the options of `pul run` for its role."""

import re


def with_role(advice: str, role: str) -> str:
    """Return advice with the options for the source or the target of a run; for another role, it is returned unchanged.

    Example:
        >>> with_role("give --pattern '(?P<camera>[^/]+)/' or --layout folder", "target")
        "give --target-pattern '(?P<camera>[^/]+)/' or --target-layout folder"
    """
    return re.sub(r"--(layout|pattern)\b", rf"--{role}-\1", advice) if role in ("source", "target") else advice
