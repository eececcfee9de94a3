"""Drawn features of people on several cameras, for benchmarks and checks of clustering and scoring."""

from typing import NamedTuple

import numpy as np
import torch

CAMERAS = 6
BLOCK = 65536


class DrawnPeople(NamedTuple):
    """Features with the identity and the camera of each image."""

    features: np.ndarray  # (n, d) float32
    pids: np.ndarray  # (n,) from 1
    camids: np.ndarray  # (n,) from 1


def draw_people(n: int, d: int, *, images_per_person: int = 17, seed: int = 0, device: str = "cpu") -> DrawnPeople:
    """Draw clustered features: ``(person + 0.4 camera + noise) * scale``, with noise that is larger in some directions than in others.

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

    people, cameras = normal(n // images_per_person + 1, d), 0.4 * normal(CAMERAS, d)
    noise_scale = torch.linspace(1.3, 0.5, d, device=device)
    scale = torch.arange(1, d + 1, device=device).float() ** -0.3  # few directions hold most of the variance, as in a trained model
    pids, camids = np.arange(n) // images_per_person, (np.arange(n) + np.arange(n) // images_per_person) % CAMERAS
    features = np.empty((n, d), np.float32)
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        person, camera = (torch.from_numpy(values[block]).to(device) for values in (pids, camids))
        drawn = (people[person] + cameras[camera] + noise_scale * normal(len(person), d)) * scale
        features[block] = drawn.cpu().numpy()
    return DrawnPeople(features, pids + 1, camids + 1)
