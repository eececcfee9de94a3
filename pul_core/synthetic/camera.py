"""One camera: the place it looks at, what stands in the way, and what its lens and sensor do to colours and detail.

It does not know people (`synthetic_figure`) nor which cameras a domain has (`synthetic`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from pul_core.errors import UserError

Floats = npt.NDArray[np.float32]
Ground = Literal["pavement", "tiles", "grass", "stairs", "asphalt"]
Wall = Literal["brick", "shop", "hedge", "concrete", "fence"]
Occluder = Literal["pole", "bin", "car", "rail"]

PLACE_SHAPE = (336, 640)  # rows, columns of the place a camera sees, in pixels of the 2 x canvas
PLACE_COLOURS: dict[str, tuple[int, int, int]] = {
    "pavement": (150, 146, 140),
    "tiles": (172, 164, 150),
    "grass": (98, 122, 66),
    "stairs": (134, 130, 128),
    "asphalt": (92, 92, 96),
    "brick": (142, 98, 82),
    "shop": (74, 80, 88),
    "hedge": (62, 88, 52),
    "concrete": (162, 160, 154),
    "fence": (118, 124, 116),
}


@dataclass(frozen=True)
class Camera:
    """Everything that stays the same in all pictures of one camera."""

    place_seed: int
    ground: Ground
    wall: Wall
    horizon: float  # where the ground begins, a share of the crop's height
    light: float  # -1 from the left, 1 from the right
    cast: tuple[tuple[float, ...], ...]  # 3 x 3 colour matrix; rows: R, G, B out
    gamma: float  # above 1 darkens the middle tones
    contrast: float  # 1 leaves as is
    haze: float  # light added everywhere, 0..1
    blur: float  # radius of a Gaussian, pixels of the final image
    resolution: float  # share of the final image's pixels across that the sensor really has
    noise: float  # standard deviation, 0..1
    views: tuple[float, ...]  # degrees under which people usually pass
    elevation: float  # 0 at eye height
    scale: float  # share of the box's height a well detected person fills


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: int, strength: float) -> Floats:
    """Return noise without edges.

    Normal values on a grid of `cell` pixels, interpolated linearly between.

    Args:
        rng: where the values come from.
        shape: (rows, columns), pixels.
        cell: distance of the grid's points, pixels; at least 1.
        strength: standard deviation at the grid's points.

    Returns:
        (rows, columns), about 0.

    Raises:
        UserError: `cell` is below 1.

    Source: ours.

    >>> import numpy as np
    >>> smooth_noise(np.random.default_rng(0), (20, 10), 5, 0.1).shape
    (20, 10)
    """
    if cell < 1:
        raise UserError(f"cell is {cell}: the grid's points lie at least a pixel apart")
    grid = (shape[0] // cell + 2, shape[1] // cell + 2)
    coarse = strength * rng.standard_normal(grid, dtype=np.float32)
    smooth = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(smooth, dtype=np.float32)


def _ground_texture(kind: Ground, rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Relative brightness of a floor whose joints get closer with the distance."""
    depth = 1 / (0.25 + np.linspace(0, 1, shape[0], dtype=np.float32)[:, None])
    x = (np.arange(shape[1], dtype=np.float32)[None, :] - shape[1] / 2) * depth
    texture: Floats = 1 + smooth_noise(rng, shape, 24, 0.05) + smooth_noise(rng, shape, 2, 0.03)
    match kind:
        case "pavement":
            joints = (np.mod(depth * 4, 1) < 0.08) | (np.mod(x / 60, 1) < 0.05)
            return np.asarray(texture - 0.18 * joints, dtype=np.float32)
        case "tiles":
            return np.asarray(texture + 0.14 * ((np.mod(depth * 4, 1) < 0.5) ^ (np.mod(x / 70, 1) < 0.5)), dtype=np.float32)
        case "grass":
            return np.add(texture, smooth_noise(rng, shape, 3, 0.12), dtype=np.float32)
        case "stairs":
            steps = np.mod(np.linspace(0, 6, shape[0], dtype=np.float32)[:, None], 1)
            return np.asarray(texture + 0.2 * (steps > 0.55) - 0.25 * (steps < 0.1), dtype=np.float32)
        case _:
            return np.asarray(texture + 0.5 * (np.abs(np.mod(x / 320, 1) - 0.5) < 0.02), dtype=np.float32)


def _wall_texture(kind: Wall, rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Relative brightness of what stands behind."""
    y = np.arange(shape[0], dtype=np.float32)[:, None]
    x = np.arange(shape[1], dtype=np.float32)[None, :]
    texture: Floats = 1 + smooth_noise(rng, shape, 32, 0.06) + smooth_noise(rng, shape, 2, 0.03)
    match kind:
        case "brick":
            row = np.floor(y / 10)
            joints = (np.mod(y, 10) < 1.5) | (np.mod(x + 13 * np.mod(row, 2), 26) < 1.5)
            rows = rng.normal(0, 0.1, (shape[0] // 10 + 1, 1)).repeat(10, axis=0)[: shape[0]]
            return np.asarray(texture + 0.25 * joints + rows, dtype=np.float32)
        case "shop":
            panes = smooth_noise(rng, shape, 40, 0.35)
            frames = (np.mod(x, 110) < 8) | (np.mod(y + 20, 120) < 7)
            return np.asarray(texture + panes + 0.9 * frames, dtype=np.float32)
        case "hedge":
            return np.add(texture, smooth_noise(rng, shape, 5, 0.25), dtype=np.float32)
        case "fence":
            return np.asarray(texture - 0.35 * (np.mod(x, 22) < 5) - 0.35 * (np.mod(y, 90) < 5), dtype=np.float32)
        case _:
            return np.asarray(texture - 0.15 * (np.mod(x, 150) < 3) - 0.12 * (np.mod(y, 80) < 2), dtype=np.float32)


@lru_cache(maxsize=32)
def _place(camera: Camera) -> Floats:
    """The whole place a camera sees, (rows, columns, 3) in 0..1; people's boxes are windows of it."""
    rng = np.random.default_rng([camera.place_seed, 7])
    horizon = 40 + int(camera.horizon * 256)
    tints = rng.normal(1, 0.04, (2, 3)).astype(np.float32)
    wall = np.array(PLACE_COLOURS[camera.wall], dtype=np.float32) / 255 * tints[0]
    ground = np.array(PLACE_COLOURS[camera.ground], dtype=np.float32) / 255 * tints[1]
    top = _wall_texture(camera.wall, rng, (horizon, PLACE_SHAPE[1]))[..., None] * wall
    bottom = _ground_texture(camera.ground, rng, (PLACE_SHAPE[0] - horizon, PLACE_SHAPE[1]))[..., None] * ground
    place = np.concatenate([top, bottom])
    for _ in range(5):  # doors, signs, posts: the large things by which two windows of one place differ
        left, tall, wide = int(rng.integers(0, PLACE_SHAPE[1])), int(rng.integers(40, horizon)), int(rng.integers(6, 50))
        place[max(0, horizon - tall) : horizon, left : left + wide] *= (rng.uniform(0.5, 1.3) * rng.normal(1, 0.07, 3)).astype(np.float32)
    return np.asarray(np.clip(place, 0, 1), dtype=np.float32)


def background(camera: Camera, left: float, rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Return what a camera sees behind a person: a window of its place.

    The window's left edge is `left` of the way across; its upper edge wanders by 12 pixels (one standard deviation).

    Args:
        camera: whose place.
        left: 0 the leftmost window, 1 the rightmost.
        rng: for the jitter.
        size: (rows, columns) of the window, pixels of the 2 x canvas.

    Returns:
        (rows, columns, 3), 0..1; a copy.

    Raises:
        UserError: `left` lies outside 0..1.

    Source: ours.

    >>> import numpy as np
    >>> from pul_core.synthetic.people import make_camera
    >>> background(make_camera("source", 10, 1), 0.5, np.random.default_rng(0), (256, 128)).shape
    (256, 128, 3)
    """
    if not 0 <= left <= 1:
        raise UserError(f"left is {left}: a window lies between 0 and 1 of the way across")
    rows, columns = size
    place = _place(camera)
    column = round(left * (place.shape[1] - columns))
    row = int(np.clip(40 + rng.normal(0, 12), 0, place.shape[0] - rows))
    return place[row : row + rows, column : column + columns].copy()


def draw_occluder(kind: Occluder, rng: np.random.Generator, scene: Floats) -> None:
    """Draw something that stands before the person, into the scene.

    A pole covers a vertical strip; a bin, a car or a rail cover a part of the lower half.

    Args:
        kind: what.
        rng: where, how large and which colour.
        scene: (rows, columns, 3), 0..1; changed in place.

    Source: ours.

    >>> import numpy as np
    >>> scene = np.ones((256, 128, 3), dtype=np.float32)
    >>> draw_occluder("pole", np.random.default_rng(0), scene)
    >>> bool((scene < 1).any())
    True
    """
    rows, columns = scene.shape[:2]
    x = float(rng.uniform(0.1, 0.9)) * columns
    y = float(rng.uniform(0.62, 0.8)) * rows
    outlines: dict[Occluder, list[list[tuple[float, float]]]] = {
        "pole": [[(x - 6, 0), (x + 6, 0), (x + 6, rows), (x - 6, rows)]],
        "bin": [[(x - 28, y), (x + 28, y), (x + 28, rows), (x - 28, rows)]],
        "car": [[(x, rows), (x, y + 20), (x + 25, y), (x + 200, y), (x + 200, rows)]],
        "rail": [[(0, y + k), (columns, y + k), (columns, y + k + 7), (0, y + k + 7)] for k in (0, 30)],
    }
    stencil = Image.new("L", (columns, rows), 0)
    for outline in outlines[kind]:
        ImageDraw.Draw(stencil).polygon(outline, fill=255)
    mask = np.asarray(stencil) > 0
    colour = rng.uniform(0.15, 0.6) * rng.uniform(0.92, 1.08, 3)
    sheen = 1 + 0.3 * np.sin(np.arange(columns) / 9)[None, :, None] * np.ones((rows, 1, 1))
    scene[mask] = np.clip(colour * sheen, 0, 1).astype(np.float32)[mask]


def expose(camera: Camera, scene: Floats, gain: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the picture a camera takes of a scene.

    In this order: halve the 2 x canvas; lose resolution; blur; gain and gamma; colour matrix; contrast about the middle grey and
    haze; noise.

    Args:
        camera: whose lens and sensor.
        scene: (2 rows, 2 columns, 3), 0..1.
        gain: brightness of this picture, 1 is average.
        rng: for the noise.

    Returns:
        (rows, columns, 3), uint8.

    Raises:
        UserError: the scene has an odd number of rows or columns.

    Source: ours.

    >>> import numpy as np
    >>> from pul_core.synthetic.people import make_camera
    >>> picture = expose(make_camera("target", 10, 2), np.full((256, 128, 3), 0.5, np.float32), 1.0, np.random.default_rng(0))
    >>> picture.shape, picture.dtype.name
    ((128, 64, 3), 'uint8')
    """
    rows, columns = scene.shape[0] // 2, scene.shape[1] // 2
    if scene.shape[:2] != (2 * rows, 2 * columns):
        raise UserError(f"a scene of {scene.shape[0]} x {scene.shape[1]} cannot be halved: give even numbers")
    image = Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8)).reduce(2)
    if camera.resolution < 1:
        few = (max(1, round(columns * camera.resolution)), max(1, round(rows * camera.resolution)))
        image = image.resize(few, Image.Resampling.BOX).resize((columns, rows), Image.Resampling.BILINEAR)
    if camera.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur))
    light = np.asarray(image, dtype=np.float32) / 255
    light = np.clip(light * gain, 0, None) ** camera.gamma
    light = light @ np.array(camera.cast, dtype=np.float32).T
    light = 0.45 + camera.contrast * (light - 0.45) + camera.haze
    light = light + camera.noise * rng.standard_normal(light.shape, dtype=np.float32)
    return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)
