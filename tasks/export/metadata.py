"""Reading the header of an exported file from its metadata."""

from pathlib import Path

from pydantic import ValidationError

from pul_core.errors import DataError
from tasks.export.header import ExportHeader


def parse_header(path: Path, text: str | None) -> ExportHeader:
    """Return the header that the metadata of a file holds.

    Args:
        path: the file, for the message.
        text: the header as JSON; None if the metadata have none.

    Raises:
        DataError: there is no header, or it is not valid.
    """
    try:
        return ExportHeader.model_validate_json(text or "")
    except ValidationError as error:
        raise DataError(f"{path} was not written by `pul export`: its metadata have no valid header; export the model again") from error


def not_a_model(path: Path, error: Exception) -> DataError:
    """Return the error for a file that its runtime cannot open."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return DataError(f"{path} cannot be opened ({reason}): give a file that `pul export` wrote, or export the model again")
