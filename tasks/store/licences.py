"""Licences of models: what was stated or is known, in the header of the model files that a run leaves behind.

The files that steps exchange have none, so that another text in the settings changes no cache key.
"""

import json

from pydantic import BaseModel, ConfigDict

from tasks.store.artifacts import Artifact, read_bytes, write_bytes

UNKNOWN = "unknown"
KEY = "licence"  # in the config of a model file


class Licence(BaseModel):
    """The licences that apply to a model: free text, an SPDX identifier where there is one."""

    model_config = ConfigDict(frozen=True)

    weights: str = UNKNOWN  # those that training started from
    source_data: str = UNKNOWN
    target_data: str = UNKNOWN

    @property
    def data(self) -> str:
        """The licences of all images that the model was trained on."""
        return "; ".join(dict.fromkeys((self.source_data, self.target_data)))


def with_licence(model: Artifact, licence: Licence) -> Artifact:
    """Write a copy of a model file whose header states a licence; the tensors are copied as they are."""
    data = read_bytes(model)
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    config = json.loads(header["__metadata__"]["pul"]) | {KEY: licence.model_dump()}
    header["__metadata__"]["pul"] = json.dumps(config)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned to 8 bytes
    return write_bytes(model.kind, "safetensors", model.rows, len(text).to_bytes(8, "little") + text + data[length:])


def licence_in(metadata: dict[str, str]) -> Licence:
    """Return the licence in the metadata of a model file; unknown for other files.

    Example:
        >>> licence_in({"pul": '{"backbone": "resnet50", "licence": {"weights": "MIT"}}'}).weights, licence_in({}).weights
        ('MIT', 'unknown')
    """
    return Licence.model_validate(json.loads(metadata.get("pul", "{}")).get(KEY) or {})
