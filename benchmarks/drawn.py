"""Drawn features of people on several cameras, for benchmarks and checks of clustering and scoring."""

from typing import NamedTuple

import numpy as np
import torch

CAMERAS = 6
BLOCK = 65536
MEAN_SHARE = 0.54  # of the squared length of a feature
CAMERA_SCALE = 0.4  # of the camera's part; that of the person is 1


class DrawnPeople(NamedTuple):
    """Features with the identity and the camera of each image."""

    features: np.ndarray  # (n, d) float32
    pids: np.ndarray  # (n,) from 1
    camids: np.ndarray  # (n,) from 1


def draw_people(n: int, d: int, *, images_per_person: int = 17, seed: int = 0, device: str = "cpu") -> DrawnPeople:
    """Draw clustered features: ``mean + (person + 0.4 camera + noise) * scale``.

    The length of the mean, and the scale and the noise of each direction, are fitted to features that a MobileNetV2 extracted from real
    people, in their principal directions (docs/log.md, 2026-11-28, "drawn features like real ones"): all images have much in common, few
    directions hold most of the variance, and the images of a person differ more in the others.

    Args:
        n: number of images.
        d: number of features.
        images_per_person: the images of a person are spread over the cameras.
        seed: the features depend on it, and on the kind of device.
        device: where the numbers are drawn; a GPU draws millions in seconds.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    people, cameras = normal(n // images_per_person + 1, d), CAMERA_SCALE * normal(CAMERAS, d)
    direction = torch.arange(1, d + 1, device=device).float()
    noise_scale, scale = 1 + 0.15 * direction.log(), (direction + 6) ** -0.8
    mean = normal(d)
    variance = ((1 + CAMERA_SCALE**2 + noise_scale.square()) * scale.square()).sum()
    mean *= (MEAN_SHARE / (1 - MEAN_SHARE) * variance).sqrt() / mean.norm()
    pids, camids = np.arange(n) // images_per_person, (np.arange(n) + np.arange(n) // images_per_person) % CAMERAS
    features = np.empty((n, d), np.float32)
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        person, camera = (torch.from_numpy(values[block]).to(device) for values in (pids, camids))
        drawn = mean + (people[person] + cameras[camera] + noise_scale * normal(len(person), d)) * scale
        features[block] = drawn.cpu().numpy()
    return DrawnPeople(features, pids + 1, camids + 1)
