"""Exported files that belong together: one for all cameras, or one for each camera and one for all others; images go to their camera's."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pul_core.arrays import Features, Images
from pul_core.errors import DataError

BLOCK = 32  # images that a runtime gets at once
MAX_NAME = 60  # characters of a camera's name in a file name


def file_names(cameras: Mapping[int, str]) -> dict[str | None, str]:
    """Return the names of a model's files, without suffix, by camera: of each camera in the given order, then of all others (None).

    A name consists of ASCII letters, digits, ``-`` and ``_``, whatever the camera is called; no two names differ only in case.

    Args:
        cameras: the different names of cameras by their numbers.

    Example:
        >>> file_names({1: "camera-1", 2: "door", 3: "1", 4: "Hof/Süd", 5: "北"})  # doctest: +NORMALIZE_WHITESPACE
        {'camera-1': 'model-camera-1', 'door': 'model-camera-door', '1': 'model-camera-1-2', 'Hof/Süd': 'model-camera-Hof-S-d',
         '北': 'model-camera-5', None: 'model-other-cameras'}
    """
    names: dict[str | None, str] = {}
    used = {"model-other-cameras"}
    for number, camera in cameras.items():
        part = re.sub(r"[^a-z0-9_]+", "-", camera, flags=re.ASCII | re.IGNORECASE).strip("-")[:MAX_NAME] or str(number)
        name = first_choice = f"model-{part}" if part.lower().startswith("camera") else f"model-camera-{part}"
        repetition = 1
        while name.lower() in used:
            repetition += 1
            name = f"{first_choice}-{repetition}"
        used.add(name.lower())
        names[camera] = name
    return {**names, None: "model-other-cameras"}


class ByCamera(NamedTuple):
    """A model by the name of the camera that it is for; the key None is that for all other cameras."""

    models: Mapping[str | None, Callable[[Images], Features]]

    def features(self, images: Images, cameras: Sequence[str | None]) -> Features:
        """Return the features of images (n, h, w, 3) uint8, each from the model of its camera; (n, d) float32.

        Raises:
            DataError: an image is from a camera without a model, and there is none for other cameras.

        Example:
            >>> def constant(value):
            ...     return lambda images: np.full((len(images), 1), value, np.float32)
            >>> model = ByCamera({"door": constant(1), None: constant(2)})
            >>> model.features(np.zeros((3, 2, 1, 3), np.uint8), ["door", None, "roof"]).ravel().tolist()
            [1.0, 2.0, 2.0]
        """
        keys = [camera if camera in self.models else None for camera in cameras]
        parts: list[tuple[list[int], Features]] = []
        for key in dict.fromkeys(keys):
            if key not in self.models:
                missing = next(camera for camera, used in zip(cameras, keys, strict=True) if used is None)
                raise DataError(f"there is no model for camera {missing!r}: export the model again, or leave out its images")
            rows = [row for row, used in enumerate(keys) if used == key]
            for start in range(0, len(rows), BLOCK):
                block = rows[start : start + BLOCK]
                parts.append((block, self.models[key](images[block])))
        features = np.empty((len(images), parts[0][1].shape[1]), np.float32)
        for block, values in parts:
            features[block] = values
        return features
