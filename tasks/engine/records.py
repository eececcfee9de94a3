"""Prefect's records of finished steps, judged before Prefect reads them.

A record names the serializer, the library and the classes that are to read it, so a forged one could run anything: it may ask for pickle,
and even as JSON it may ask for any function that can be imported. Read is only what our own steps write.
"""

import json
from pathlib import PurePath
from typing import Any

from prefect.serializers import JSONSerializer
from pydantic import BaseModel

from tasks.store.artifacts import Artifact
from tasks.store.references import Reference

SERIALIZER = JSONSerializer().model_dump(mode="json")


def is_ours(record: bytes, key: str) -> bool:
    """Say whether a record is JSON that one of our steps wrote under this key: a reference whose parts are plain values."""
    try:
        told = json.loads(record, object_pairs_hook=_without_doubles)
        result = json.loads(told["result"], object_pairs_hook=_without_doubles)
        return (
            set(told) == {"metadata", "result"}
            and told["metadata"]["serializer"] == SERIALIZER
            and PurePath(told["metadata"]["storage_key"]).name == key  # else a whole one of another step, put in its place
            and set(result) == {"__class__", "data"}
            and result["__class__"] in _names()
            and _is_plain(result["data"])
        )
    except (ValueError, TypeError, LookupError):
        return False


def _names() -> set[str]:
    kinds: list[type[BaseModel]] = [Artifact, *Reference.__subclasses__()]
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return not any(name.startswith("__") for name in value) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else True


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that says something twice: who reads it next might take the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found
