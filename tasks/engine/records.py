"""Verification of Prefect's result records before Prefect reads them.

A record names the serializer, the JSON library and the classes with which Prefect reads it. A forged record could therefore execute any
code: it can request pickle and, even as JSON, any importable function. Only records in exactly the form that this project's steps write are
trusted.
"""

import json
from pathlib import PurePath
from typing import Any

from prefect.serializers import JSONSerializer
from pydantic import BaseModel

from tasks.store.artifacts import Artifact
from tasks.store.references import Reference

SERIALIZER = JSONSerializer().model_dump(mode="json")


def is_trusted_result(record: bytes, key: str) -> bool:
    """Return whether a record is the JSON that a step of this project writes under a cache key: one reference with plain values.

    Args:
        record: the content of the record's file.
        key: the cache key under which the record was found.
    """
    try:
        fields = json.loads(record, object_pairs_hook=_unique_names)
        result = json.loads(fields["result"], object_pairs_hook=_unique_names)
        classes: list[type[BaseModel]] = [Artifact, *Reference.__subclasses__()]
        return (
            set(fields) == {"metadata", "result"}
            and fields["metadata"]["serializer"] == SERIALIZER
            and PurePath(fields["metadata"]["storage_key"]).name == key  # otherwise it is the record of another step, copied here
            and set(result) == {"__class__", "data"}
            and result["__class__"] in [f"{each.__module__}.{each.__qualname__}" for each in classes]
            and _is_plain(result["data"])
        )
    except (ValueError, TypeError, LookupError):
        return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return not any(name.startswith("__") for name in value) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else True


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse a repeated name, because another parser may read the other value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a JSON object repeats a name")
    return fields
