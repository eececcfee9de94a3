"""One synthetic camera: its backdrop, occluders, and the colours, blur and noise of its lens and sensor.

`figure` draws the people; `people` defines the cameras of each domain.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

FloatImage = npt.NDArray[np.float32]
Ground = Literal["pavement", "tiles", "grass", "stairs", "asphalt"]
Wall = Literal["brick", "shop", "hedge", "concrete", "fence"]
Occluder = Literal["pole", "bin", "car", "rail"]

BACKDROP_SHAPE = (336, 640)  # rows and columns of a camera's field of view, in pixels of the canvas at twice the final size
SURFACE_COLOURS: dict[str, tuple[int, int, int]] = {
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
    """The properties shared by all images of one camera."""

    backdrop_seed: int
    ground: Ground
    wall: Wall
    horizon: float  # where the ground begins, as a fraction of the crop's height
    light: float  # direction of the light: -1 from the left, 1 from the right
    colour_matrix: tuple[tuple[float, ...], ...]  # 3 x 3; rows are the output channels R, G, B
    gamma: float  # values above 1 darken the mid-tones
    contrast: float  # 1 leaves the contrast unchanged
    haze: float  # brightness added to every pixel, 0..1
    blur: float  # radius of the Gaussian blur, in pixels of the final image
    resolution: float  # sensor resolution as a fraction of the final image's width and height
    noise: float  # standard deviation of the sensor noise, on the scale 0..1
    views: tuple[float, ...]  # usual viewing angles of passing people, degrees
    elevation: float  # how steeply the camera looks down; 0 is eye level
    scale: float  # height of a well-detected person as a fraction of the box height


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: int, strength: float) -> FloatImage:
    """Return smooth noise: normal values on a coarse grid, interpolated linearly.

    Args:
        rng: the random generator.
        shape: (rows, columns), pixels.
        cell: spacing of the grid points, pixels; at least 1.
        strength: standard deviation at the grid points.

    Returns:
        (rows, columns), centred on 0.

    Example:
        >>> import numpy as np
        >>> smooth_noise(np.random.default_rng(0), (20, 10), 5, 0.1).shape
        (20, 10)
    """
    grid = strength * rng.standard_normal((shape[0] // cell + 2, shape[1] // cell + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float32)


def _ground_texture(kind: Ground, rng: np.random.Generator, shape: tuple[int, int]) -> FloatImage:
    """Return the relative brightness of the ground, in perspective: joints become denser with distance."""
    depth = 1 / (0.25 + np.linspace(0, 1, shape[0], dtype=np.float32)[:, None])
    x = (np.arange(shape[1], dtype=np.float32)[None, :] - shape[1] / 2) * depth
    texture: FloatImage = 1 + smooth_noise(rng, shape, 24, 0.05) + smooth_noise(rng, shape, 2, 0.03)
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


def _wall_texture(kind: Wall, rng: np.random.Generator, shape: tuple[int, int]) -> FloatImage:
    """Return the relative brightness of the wall behind the people."""
    y = np.arange(shape[0], dtype=np.float32)[:, None]
    x = np.arange(shape[1], dtype=np.float32)[None, :]
    texture: FloatImage = 1 + smooth_noise(rng, shape, 32, 0.06) + smooth_noise(rng, shape, 2, 0.03)
    match kind:
        case "brick":
            joints = (np.mod(y, 10) < 1.5) | (np.mod(x + 13 * np.mod(np.floor(y / 10), 2), 26) < 1.5)
            row_brightness = rng.normal(0, 0.1, (shape[0] // 10 + 1, 1)).repeat(10, axis=0)[: shape[0]]
            return np.asarray(texture + 0.25 * joints + row_brightness, dtype=np.float32)
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
def _backdrop(camera: Camera) -> FloatImage:
    """Return a camera's whole field of view without people, (rows, columns, 3) in 0..1; bounding boxes are windows of it."""
    rng = np.random.default_rng([camera.backdrop_seed, 7])
    horizon = 40 + int(camera.horizon * 256)
    tints = rng.normal(1, 0.04, (2, 3)).astype(np.float32)
    wall_colour = np.array(SURFACE_COLOURS[camera.wall], dtype=np.float32) / 255 * tints[0]
    ground_colour = np.array(SURFACE_COLOURS[camera.ground], dtype=np.float32) / 255 * tints[1]
    wall = _wall_texture(camera.wall, rng, (horizon, BACKDROP_SHAPE[1]))[..., None] * wall_colour
    ground = _ground_texture(camera.ground, rng, (BACKDROP_SHAPE[0] - horizon, BACKDROP_SHAPE[1]))[..., None] * ground_colour
    backdrop = np.concatenate([wall, ground])
    for _ in range(5):  # doors, signs and posts: large objects that make the windows of one backdrop differ
        left, height, width = int(rng.integers(0, BACKDROP_SHAPE[1])), int(rng.integers(40, horizon)), int(rng.integers(6, 50))
        tint = (rng.uniform(0.5, 1.3) * rng.normal(1, 0.07, 3)).astype(np.float32)
        backdrop[max(0, horizon - height) : horizon, left : left + width] *= tint
    return np.asarray(np.clip(backdrop, 0, 1), dtype=np.float32)


def crop_backdrop(camera: Camera, position: float, rng: np.random.Generator, size: tuple[int, int]) -> FloatImage:
    """Return the background of one image: a window of the camera's backdrop.

    The window's vertical position varies randomly, with a standard deviation of 12 pixels.

    Args:
        camera: the camera.
        position: horizontal position, 0 for the leftmost window, 1 for the rightmost.
        rng: the random generator of the vertical shift.
        size: (rows, columns) of the window, pixels of the canvas at twice the final size.

    Returns:
        (rows, columns, 3), 0..1; a copy.

    Example:
        >>> import numpy as np
        >>> from pul_core.synthetic.people import make_camera
        >>> crop_backdrop(make_camera("source", 10, 1), 0.5, np.random.default_rng(0), (256, 128)).shape
        (256, 128, 3)
    """
    rows, columns = size
    backdrop = _backdrop(camera)
    left = round(position * (backdrop.shape[1] - columns))
    top = int(np.clip(40 + rng.normal(0, 12), 0, backdrop.shape[0] - rows))
    return backdrop[top : top + rows, left : left + columns].copy()


def draw_occluder(kind: Occluder, rng: np.random.Generator, scene: FloatImage) -> None:
    """Draw an object in front of the person.

    A pole covers a vertical strip; a bin, a car or a rail covers part of the lower half.

    Args:
        kind: the object.
        rng: the random generator of its position and colour.
        scene: (rows, columns, 3), 0..1; changed in place.

    Example:
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


def capture(camera: Camera, scene: FloatImage, gain: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Simulate the camera's lens and sensor, and return the image it takes of a scene.

    The steps, in this order: downsampling by 2, loss of resolution, blur, gain and gamma, colour matrix, contrast around mid-grey and
    haze, noise.

    Args:
        camera: the camera.
        scene: (2 rows, 2 columns, 3), 0..1; the numbers of rows and columns are even.
        gain: brightness of this image; 1 is average.
        rng: the random generator of the noise.

    Returns:
        (rows, columns, 3), uint8.

    Example:
        >>> import numpy as np
        >>> from pul_core.synthetic.people import make_camera
        >>> image = capture(make_camera("target", 10, 2), np.full((256, 128, 3), 0.5, np.float32), 1.0, np.random.default_rng(0))
        >>> image.shape, image.dtype.name
        ((128, 64, 3), 'uint8')
    """
    rows, columns = scene.shape[0] // 2, scene.shape[1] // 2
    image = Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8)).reduce(2)
    if camera.resolution < 1:
        sensor_size = (max(1, round(columns * camera.resolution)), max(1, round(rows * camera.resolution)))
        image = image.resize(sensor_size, Image.Resampling.BOX).resize((columns, rows), Image.Resampling.BILINEAR)
    if camera.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur))
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = np.clip(pixels * gain, 0, None) ** camera.gamma
    pixels = pixels @ np.array(camera.colour_matrix, dtype=np.float32).T
    pixels = 0.45 + camera.contrast * (pixels - 0.45) + camera.haze
    pixels = pixels + camera.noise * rng.standard_normal(pixels.shape, dtype=np.float32)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
