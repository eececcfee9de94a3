"""What a person sees when something cannot work: one sentence, never a traceback; a real bug keeps its traceback."""

import errno
import logging
import sys
import warnings

from pydantic import ValidationError


def printable(text: str) -> str:
    """Keep a name with a line feed in it on one line, and one that would steer the terminal from doing so."""
    return text if text.isprintable() else ascii(text)[1:-1]


def in_one_line(error: BaseException) -> str | None:
    """Return the one sentence for an error that a person can mend, None for a bug of ours."""
    line = _line(error)
    return line and printable(line)


def _line(error: BaseException) -> str | None:
    from prefect.exceptions import ParameterTypeError

    from deployments.access import UpError
    from tasks.store.artifacts import DamagedArtifactError

    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors())
    if isinstance(error, ParameterTypeError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        way_out = ": make room (pul gc), then pul resume" if error.errno == errno.ENOSPC and "pul resume" not in str(error) else ""
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}{way_out}"
    if isinstance(error, _known("httpx", "TransportError")) or str(error).startswith("Failed to reach API"):
        return f"Prefect's server does not answer ({error or type(error).__name__}): start it again, then Retry or pul resume"
    if isinstance(error, _known("mlflow.exceptions", "MlflowException")):
        return f"MLflow cannot be written or read ({str(error).splitlines()[0]}): mend that, then Retry or pul resume"
    if isinstance(error, ValueError | FloatingPointError | DamagedArtifactError | UpError):
        return " ".join(str(error).split())
    return None


def _known(module: str, name: str) -> tuple[type[BaseException], ...]:
    """Return a library's error if the library was imported at all: it takes seconds, and what was not cannot have raised it."""
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()


class _WithoutTraceback(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (line := in_one_line(error)):
            record.exc_info = record.exc_text = None
            record.msg, record.args = line, ()
        return True


def quieten() -> None:
    """Keep tracebacks of what a person can mend, and libraries' advice to their developers, off the terminal."""
    warnings.filterwarnings("ignore", module="mlflow")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_WithoutTraceback())
