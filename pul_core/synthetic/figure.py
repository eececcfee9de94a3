"""One synthetic pedestrian: draws a `Person` in a `Pose` and returns the colour of every pixel that the figure covers.

`people` defines the frequency of clothes; `camera` draws backgrounds, and simulates colour casts and lenses.

The figure is a three-dimensional skeleton (x towards the person's left, h up, z forward; the unit is the body height), rotated to the
viewing direction and drawn as flat shapes from far to near. Each pixel first holds a part number and a shade; colours and patterns are
applied afterwards.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]
Point = tuple[float, float]
Top = Literal["tshirt", "shirt", "jacket", "coat", "dress"]
Bottom = Literal["trousers", "shorts", "skirt"]
Pattern = Literal["plain", "stripes", "pinstripes", "checks", "dots", "logo", "two_tone"]
Bag = Literal["none", "backpack", "shoulder", "handbag"]
Hairstyle = Literal["short", "bald", "bob", "long", "ponytail", "bun"]
Hat = Literal["none", "cap", "beanie"]

SHOULDER, HIP = 0.815, 0.50  # heights of the shoulders and hips, in body heights
FAR_SHADE, PLAIN_SHADE = 100, 128  # shade of limbs on the far side, and of all other parts; 128 leaves a colour unchanged


# The part of the figure that a pixel belongs to.
Part = IntEnum("Part", "BACKGROUND SKIN HAIR HAT UPPER SLEEVE INNER LOWER SHOES BAG SCARF EYES PATTERN", start=0)


@dataclass(frozen=True)
class Person:
    """The appearance shared by all images of one identity. Colours are in 0..1, lengths in body heights."""

    build: float  # body width; 1 is average
    leg_length: float  # 1 is average
    head_size: float  # 1 is average
    skin_colour: Colour
    hairstyle: Hairstyle
    hair_colour: Colour
    hat: Hat
    hat_colour: Colour
    top: Top
    top_colour: Colour
    pattern_colour: Colour
    inner_colour: Colour  # of the garment visible under an open jacket
    pattern: Pattern
    pattern_period: float
    is_open: bool  # whether a jacket or coat is open at the front
    top_hem: float  # height of the lower edge of the top or dress
    bottom: Bottom
    bottom_colour: Colour
    bottom_hem: float  # height of the lower edge of shorts or a skirt
    trouser_half_width: float  # at the shin
    has_side_stripe: bool
    shoe_colour: Colour
    boot_height: float  # 0 for shoes
    bag: Bag
    bag_colour: Colour
    bag_size: float  # 1 is average
    bag_side: int  # -1 or 1
    has_scarf: bool
    scarf_colour: Colour


@dataclass(frozen=True)
class Pose:
    """The position and posture of a person in one image."""

    view: float  # degrees: 0 faces the camera, 90 walks towards the right edge, 180 shows the back
    phase: float  # of the gait cycle, radians
    stride: float  # swing amplitude of the thighs, radians
    elevation: float  # 0 is eye level; 0.3 looks steeply down
    x: float  # pixels from the left edge to the person's centre line
    y: float  # pixels from the top edge to the soles
    height: float  # pixels from the soles to the crown


class _Sketch:
    """Flat shapes with their depths, drawn from far to near; a larger depth is nearer to the camera."""

    def __init__(self, person: Person, pose: Pose) -> None:
        self.person, self.pose = person, pose
        self.cos, self.sin = math.cos(math.radians(pose.view)), math.sin(math.radians(pose.view))
        self.shapes: list[tuple[float, str, list[Point], tuple[int, int, int]]] = []  # depth, name of ImageDraw's method, points, fill

    def scale(self, h: float) -> float:
        """Return pixels per body height at height h; a camera above eye level is nearer to the upper body."""
        return self.pose.height * (1 - self.pose.elevation + 2 * self.pose.elevation * h)

    def depth(self, x: float, z: float) -> float:
        """Return how much nearer a point is to the camera than the body's axis."""
        return self.cos * z - self.sin * x

    def project(self, x: float, h: float, z: float) -> Point:
        """Return the pixel (column, row) of a point of the body."""
        tilt = self.pose.elevation
        row = self.pose.y - self.pose.height * ((1 - tilt) * h + tilt * h * h - 0.6 * tilt * self.depth(x, z))
        return self.pose.x + self.scale(h) * (self.cos * x + self.sin * z), row

    def polygon(self, part: Part, points: list[Point], depth: float, shade: int = PLAIN_SHADE) -> None:
        """Add a filled polygon, in pixels."""
        self.shapes.append((depth, "polygon", points, (part, shade, 0)))

    def ellipse(self, part: Part, centre: Point, radii: Point, depth: float, shade: int = PLAIN_SHADE) -> None:
        """Add a filled ellipse, in pixels."""
        (x, y), (rx, ry) = centre, radii
        self.shapes.append((depth, "ellipse", [(x - rx, y - ry), (x + rx, y + ry)], (part, shade, 0)))

    def bar(self, part: Part, ends: tuple[Point, Point], half_widths: tuple[float, float], depth: float, shade: int = PLAIN_SHADE) -> None:
        """Add a tapered bar with round ends, in pixels."""
        (x0, y0), (x1, y1) = ends
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        a, b = half_widths
        self.polygon(
            part,
            [(x0 + nx * a, y0 + ny * a), (x1 + nx * b, y1 + ny * b), (x1 - nx * b, y1 - ny * b), (x0 - nx * a, y0 - ny * a)],
            depth,
            shade,
        )
        self.ellipse(part, ends[0], (a, a), depth, shade)
        self.ellipse(part, ends[1], (b, b), depth, shade)

    def tube(self, part: Part, rings: list[tuple[float, float, float]], depth: float) -> None:
        """Add a part of the torso, given as (height, half width, half depth) rings from top to bottom, in body heights."""
        left, right = [], []
        for h, side, front in rings:
            x, y = self.project(0, h, 0)
            half = math.hypot(side * self.cos, front * self.sin) * self.person.build * self.scale(h)  # of the projected ellipse
            left.append((x - half, y))
            right.append((x + half, y))
        self.polygon(part, left + right[::-1], depth)

    def render(self, size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Draw all shapes and return (parts, shades), each (rows, columns)."""
        image = Image.new("RGB", (size[1], size[0]), (0, PLAIN_SHADE, 0))
        draw = ImageDraw.Draw(image)
        for _, kind, points, fill in sorted(self.shapes, key=lambda shape: shape[0]):
            getattr(draw, kind)(points, fill=fill)
        pixels = np.asarray(image)
        return pixels[..., 0], pixels[..., 1]


def _leg(sketch: _Sketch, side: int) -> None:
    """Add one leg: thigh, shin and shoe, in trousers, in shorts or bare."""
    person, pose = sketch.person, sketch.pose
    swing = pose.stride * math.sin(pose.phase) * side
    bend = 1.3 * pose.stride * max(0.0, math.cos(pose.phase) * side)
    hip_x, hip_h = 0.052 * side * person.build, HIP * person.leg_length
    upper, lower = 0.5 * hip_h, 0.5 * hip_h - 0.025  # lengths of the thigh and the shin
    knee = (hip_x, hip_h - upper * math.cos(swing), upper * math.sin(swing))
    ankle = (hip_x, knee[1] - lower * math.cos(swing - bend), knee[2] + lower * math.sin(swing - bend))
    depth = -2 + sketch.depth(hip_x, knee[2])
    shade = FAR_SHADE if sketch.depth(hip_x, 0) < -0.02 else PLAIN_SHADE
    a, b, c = sketch.project(hip_x, hip_h, 0), sketch.project(*knee), sketch.project(*ankle)
    scale, build = sketch.scale(0.25), person.build
    thigh, shin = (0.062 * build * scale, 0.042 * build * scale), (0.036 * build * scale, 0.024 * scale)
    leg_half_width = person.trouser_half_width * scale
    has_trousers = person.bottom == "trousers"
    if has_trousers:
        thigh, shin = (thigh[0], max(thigh[1], leg_half_width)), (max(shin[0], leg_half_width), leg_half_width)
    sketch.bar(Part.LOWER if has_trousers else Part.SKIN, (b, c), shin, depth, shade)
    sketch.bar(Part.LOWER if person.bottom != "skirt" else Part.SKIN, (a, b), thigh, depth, shade)
    if person.bottom == "shorts":
        fraction = min(1.0, max(0.0, (knee[1] - person.bottom_hem) / lower))
        end = (b[0] + (c[0] - b[0]) * fraction, b[1] + (c[1] - b[1]) * fraction)
        sketch.bar(Part.LOWER, (b, end), (thigh[1] * 1.1, thigh[1] * 1.1), depth, shade)
    if has_trousers and person.has_side_stripe and shade == PLAIN_SHADE:
        edge = abs(sketch.cos) * side * leg_half_width * 0.8 * (1 if sketch.cos >= 0 else -1)
        sketch.bar(Part.INNER, ((a[0] + edge, a[1]), (c[0] + edge, c[1])), (0.006 * scale, 0.006 * scale), depth + 1e-3, shade)
    if person.boot_height > 0:
        fraction = min(1.0, person.boot_height / lower)
        top = (c[0] + (b[0] - c[0]) * fraction, c[1] + (b[1] - c[1]) * fraction)
        sketch.bar(Part.SHOES, (top, c), (0.034 * scale, 0.03 * scale), depth + 2e-3, shade)
    toe = sketch.project(ankle[0], max(0.0, ankle[1] - 0.022), ankle[2] + 0.085)
    heel = sketch.project(ankle[0], max(0.0, ankle[1] - 0.015), ankle[2] - 0.015)
    sketch.bar(Part.SHOES, (heel, toe), (0.025 * scale, 0.019 * scale), depth + 3e-3, shade)


def _arm(sketch: _Sketch, side: int) -> None:
    """Add one arm, and the handbag if this hand carries one."""
    person, pose = sketch.person, sketch.pose
    padding = {"tshirt": 0.0, "dress": 0.0, "shirt": 0.001, "jacket": 0.005, "coat": 0.007}[person.top]  # thickness of the sleeve
    has_handbag = person.bag == "handbag" and side == person.bag_side
    swing = -0.8 * pose.stride * math.sin(pose.phase) * side * (0.4 if has_handbag else 1.0)
    shoulder = (side * (0.1 * person.build + padding), SHOULDER - 0.03, 0.0)
    elbow = (shoulder[0] + side * 0.022, shoulder[1] - 0.165 * math.cos(swing), 0.165 * math.sin(swing))
    forearm_swing = swing + (0.1 if has_handbag else 0.35)
    wrist = (elbow[0] - side * 0.004, elbow[1] - 0.14 * math.cos(forearm_swing), elbow[2] + 0.14 * math.sin(forearm_swing))
    shoulder_depth = sketch.depth(shoulder[0], 0)
    depth = shoulder_depth + 0.03 if shoulder_depth > -0.06 else shoulder_depth - 0.1
    shade = FAR_SHADE if shoulder_depth < -0.06 else PLAIN_SHADE - 12
    a, b, c = sketch.project(*shoulder), sketch.project(*elbow), sketch.project(*wrist)
    scale = sketch.scale(0.7)
    has_short_sleeves = person.top in ("tshirt", "dress")
    sketch.ellipse(Part.SKIN, c, (0.021 * scale, 0.024 * scale), depth, shade)
    sketch.bar(
        Part.SKIN if has_short_sleeves else Part.SLEEVE, (b, c), ((0.025 + padding) * scale, (0.019 + padding) * scale), depth + 1e-3, shade
    )
    end = (a[0] + 0.7 * (b[0] - a[0]), a[1] + 0.7 * (b[1] - a[1])) if has_short_sleeves else b
    if has_short_sleeves:
        sketch.bar(Part.SKIN, (a, b), (0.028 * scale, 0.025 * scale), depth + 1e-3, shade)
    sketch.bar(Part.SLEEVE, (a, end), ((0.031 + padding) * scale, (0.028 + padding) * scale), depth + 2e-3, shade)
    if has_handbag:
        size = person.bag_size * scale
        half = 0.02 * size + 0.035 * size * abs(sketch.sin)
        top = c[1] + 0.03 * scale
        bottom = top + 0.085 * size
        sketch.polygon(
            Part.BAG,
            [(c[0] - half, top), (c[0] + half, top), (c[0] + half * 1.2, bottom), (c[0] - half * 1.2, bottom)],
            depth + 3e-3,
        )
        sketch.bar(Part.BAG, (c, (c[0], top)), (0.008 * scale, 0.01 * scale), depth - 1e-3)


def _torso(sketch: _Sketch) -> None:
    """Add the hips or the skirt, the top down to its hem, and the inner garment of an open front."""
    person = sketch.person
    hip = HIP * person.leg_length
    padding = {"tshirt": 0.0, "dress": 0.0, "shirt": 0.002, "jacket": 0.008, "coat": 0.01}[person.top]  # thickness of the cloth
    if person.bottom == "skirt":
        sketch.tube(Part.LOWER, [(hip + 0.1, 0.088, 0.07), (hip, 0.105, 0.085), (person.bottom_hem, 0.125, 0.11)], -1.0)
    else:
        sketch.tube(Part.LOWER, [(hip + 0.08, 0.09, 0.07), (hip, 0.1, 0.08), (hip - 0.04, 0.1, 0.08)], -1.0)
    flare = 0.03 if person.top == "dress" else 0.012 if person.top == "coat" else 0.0
    rings = [
        (SHOULDER + 0.03, 0.04, 0.045),
        (SHOULDER, 0.092 + padding, 0.058 + padding),
        (0.74, 0.102 + padding, 0.074 + padding),
        (0.62, 0.088 + padding, 0.064 + padding),
        (hip + 0.01, 0.096 + padding, 0.078 + padding),
    ]
    if person.top_hem < hip:
        rings.append((person.top_hem, 0.1 + padding + flare, 0.085 + padding + flare))
    sketch.tube(Part.UPPER, rings, 0.0)
    if sketch.cos > 0.15:
        if person.is_open:
            half = 0.042 * sketch.cos * person.build
            shift = 0.07 * sketch.sin
            rows = [(SHOULDER + 0.02, 0.4), (0.7, 1.0), (max(person.top_hem, hip - 0.05), 1.25)]
            axis = [sketch.project(0, h, 0) for h, _ in rows]
            left = [(x + (shift - half * w) * sketch.scale(h), y) for (x, y), (h, w) in zip(axis, rows, strict=True)]
            right = [(x + (shift + half * w) * sketch.scale(h), y) for (x, y), (h, w) in zip(axis, rows, strict=True)]
            sketch.polygon(Part.INNER, left + right[::-1], 1e-3)
        x, y = sketch.project(0, SHOULDER + 0.03, 0.05)
        scale = sketch.scale(SHOULDER)
        sketch.polygon(Part.SKIN, [(x - 0.03 * scale, y), (x + 0.03 * scale, y), (x, y + 0.05 * scale * sketch.cos)], 2e-3)


def _bag(sketch: _Sketch) -> None:
    """Add a backpack with its straps, or a shoulder bag with its strap across the chest; `_arm` draws handbags."""
    person, size = sketch.person, sketch.person.bag_size
    if person.bag == "backpack":
        depth = sketch.depth(0, -0.12)
        x, top = sketch.project(0, 0.8, -0.11)
        bottom = sketch.project(0, 0.8 - 0.24 * size, -0.11)[1]
        half = math.hypot(0.088 * sketch.cos, 0.055 * sketch.sin) * size * sketch.scale(0.7)
        corner = 0.25 * half
        points = [
            (x - half + corner, top),
            (x + half - corner, top),
            (x + half, top + 2 * corner),
            (x + half, bottom),
            (x - half, bottom),
            (x - half, top + 2 * corner),
        ]
        sketch.polygon(Part.BAG, points, depth * 2)
        sketch.bar(
            Part.BAG,
            ((x - half * 0.7, (top + 2 * bottom) / 3), (x + half * 0.7, (top + 2 * bottom) / 3)),
            (1.0, 1.0),
            depth * 2 + 1e-3,
            FAR_SHADE - 20,
        )
        if sketch.cos > -0.3:
            for side in (-1, 1):
                ends = (sketch.project(side * 0.065, SHOULDER + 0.015, 0.02), sketch.project(side * 0.075, 0.68, 0.06))
                sketch.bar(Part.BAG, ends, (0.013 * sketch.scale(0.8),) * 2, 0.02 + 0.01 * sketch.depth(side * 0.06, 0))
    elif person.bag == "shoulder":
        side = person.bag_side
        front = 0.065 if sketch.cos >= 0 else -0.065
        ends = (sketch.project(-side * 0.06, SHOULDER + 0.01, 0), sketch.project(side * 0.11 * person.build, 0.56, front))
        sketch.bar(Part.BAG, ends, (0.011 * sketch.scale(0.8),) * 2, 0.025)
        x, y = sketch.project(side * 0.125 * person.build, 0.53, 0)
        half, height = (0.035 + 0.045 * abs(sketch.sin)) * size * sketch.scale(0.5), 0.1 * size * sketch.scale(0.5)
        depth = sketch.depth(side * 0.125, 0)
        sketch.polygon(
            Part.BAG,
            [(x - half, y - height / 3), (x + half, y - height / 3), (x + half, y + height), (x - half, y + height)],
            depth + 0.08 if depth > -0.08 else depth,
        )


def _hat_and_scarf(sketch: _Sketch, centre: Point, radii: Point, face_shift: float) -> None:
    """Add a cap with its brim forward or a beanie, and a scarf around the neck."""
    person, scale = sketch.person, sketch.scale(0.93) * sketch.person.head_size
    (x, y), (rx, ry) = centre, radii
    if person.hat != "none":
        brim = y - 0.28 * ry
        points = [
            (x - rx * 1.15, brim),
            (x - rx * 0.95, y - 0.9 * ry),
            (x, y - 1.2 * ry),
            (x + rx * 0.95, y - 0.9 * ry),
            (x + rx * 1.15, brim),
        ]
        sketch.polygon(Part.HAT, points, 1.4)
        if person.hat == "cap" and sketch.cos > -0.5:
            tip = (x + 0.075 * scale * sketch.sin, brim + 0.1 * ry)
            sketch.bar(
                Part.HAT, ((x + face_shift, brim), tip), (rx * (0.3 + 0.6 * max(0.0, sketch.cos)) * 0.5, 0.01 * scale), 1.5, FAR_SHADE
            )
    if person.has_scarf:
        sketch.ellipse(Part.SCARF, sketch.project(0, SHOULDER + 0.035, 0.01), (0.068 * scale, 0.034 * scale), 1.12)


def _head(sketch: _Sketch) -> None:
    """Add the neck, the face, the hair and the hat; the visible part of the face depends on the viewing direction."""
    person = sketch.person
    scale = sketch.scale(0.93) * person.head_size
    rx, ry = 0.047 * scale, 0.064 * scale
    x, y = sketch.project(0, 0.926, 0.012)
    face_shift = 0.02 * scale * sketch.sin  # offset of the face from the centre of the head
    sketch.bar(Part.SKIN, (sketch.project(0, SHOULDER + 0.02, 0), (x, y + ry * 0.6)), (0.032 * scale, 0.03 * scale), 0.5, FAR_SHADE + 10)
    if person.hairstyle != "bald":
        sketch.ellipse(Part.HAIR, (x - 0.5 * face_shift, y - 0.12 * ry), (rx * 1.13, ry * 1.0), 1.0)
    length = {"bob": 0.055, "long": 0.15}.get(person.hairstyle, 0.0) * scale
    if length > 0:
        depth = 0.4 if sketch.cos > 0.5 else 1.05
        centre = x - 1.1 * face_shift
        half = rx * (1.2 if abs(sketch.sin) < 0.7 else 0.85)
        sketch.polygon(
            Part.HAIR,
            [
                (centre - half, y - 0.2 * ry),
                (centre + half, y - 0.2 * ry),
                (centre + half * 0.9, y + 0.5 * ry + length),
                (centre - half * 0.9, y + 0.5 * ry + length),
            ],
            depth,
        )
    if person.hairstyle == "ponytail" and sketch.cos < 0.6:
        root = (x - 2.2 * face_shift, y - 0.2 * ry)
        sketch.bar(Part.HAIR, (root, (x - 3.2 * face_shift, y + 0.12 * scale)), (0.022 * scale, 0.012 * scale), 1.3)
    if person.hairstyle == "bun":
        sketch.ellipse(Part.HAIR, (x - 1.6 * face_shift, y - 0.95 * ry), (0.026 * scale, 0.026 * scale), 1.3)
    if sketch.cos > -0.75 or person.hairstyle == "bald":
        visible = max(0.0, min(1.0, 0.62 + 0.5 * sketch.cos)) if person.hairstyle != "bald" else 1.0
        sketch.ellipse(
            Part.SKIN, (x + 1.2 * face_shift * (2 - visible) * 0.6, y + 0.12 * ry), (rx * (0.5 + 0.48 * visible), ry * 0.88), 1.1
        )
    if sketch.cos > 0.1:
        for side in (-1, 1):
            sketch.ellipse(Part.EYES, (x + 1.3 * face_shift + side * rx * 0.42 * sketch.cos, y), (rx * 0.17, ry * 0.08), 1.15)
    _hat_and_scarf(sketch, (x, y), (rx, ry), face_shift)


def _pattern_mask(person: Person, pose: Pose, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the mask (rows, columns) of the pixels where the pattern's colour replaces the colour of the top, if that is not plain."""
    period = person.pattern_period
    v = (np.arange(size[0], dtype=np.float32)[:, None] - (pose.y - SHOULDER * pose.height)) / pose.height
    u = (np.arange(size[1], dtype=np.float32)[None, :] - pose.x) / pose.height
    facing = math.cos(math.radians(pose.view))
    match person.pattern:
        case "stripes":
            mask = np.mod(v / period, 1) < 0.45
        case "pinstripes":
            mask = np.mod(u / period, 1) < 0.35
        case "checks":
            mask = (np.mod(v / period, 1) < 0.5) ^ (np.mod(u / period, 1) < 0.5)
        case "dots":
            mask = (np.mod(v / period, 1) - 0.5) ** 2 + (np.mod(u / period, 1) - 0.5) ** 2 < 0.09
        case "logo":
            mask = (np.abs(u) < 0.9 * period) & (np.abs(v - 0.11) < 0.6 * period) & (facing > 0.25)
        case _:  # two_tone
            mask = v < 2.2 * period
    return np.broadcast_to(mask, size)


def _part_colours(person: Person) -> npt.NDArray[np.float32]:
    """Return the colours of all parts, (parts, 3), 0..1."""
    table = {
        Part.BACKGROUND: (0.0, 0.0, 0.0),
        Part.SKIN: person.skin_colour,
        Part.HAIR: person.hair_colour,
        Part.HAT: person.hat_colour,
        Part.UPPER: person.top_colour,
        Part.SLEEVE: person.top_colour,
        Part.INNER: person.inner_colour,
        Part.LOWER: person.bottom_colour,
        Part.SHOES: person.shoe_colour,
        Part.BAG: person.bag_colour,
        Part.SCARF: person.scarf_colour,
        Part.EYES: (0.28, 0.21, 0.18),
        Part.PATTERN: person.pattern_colour,
    }
    return np.array([table[part] for part in Part], dtype=np.float32)


def draw_person(
    person: Person, pose: Pose, size: tuple[int, int], light: float, folds: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Draw one person without a background.

    The skeleton is rotated to `pose.view` and drawn as parts from far to near. The colour of a pixel is the colour of its part x the shade
    of the limb x the light from the side (the slope of the blurred outline) x the folds.

    Args:
        person: the appearance.
        pose: the posture and position, in pixels of this canvas.
        size: (rows, columns) of the canvas, pixels.
        light: direction of the light: -1 from the left, 1 from the right, 0 from the front.
        folds: relative brightness of the cloth, (rows, columns), centred on 1.

    Returns:
        (colours, mask): the colours (n, 3), about 0..1, of the n pixels where `mask` (rows, columns) is true, in row-major order.

    Example:
        >>> import numpy as np
        >>> from pul_core.synthetic.people import make_person
        >>> pose = Pose(view=0, phase=0, stride=0.4, elevation=0, x=64, y=245, height=230)
        >>> colours, mask = draw_person(make_person("source", 10, 1), pose, (256, 128), 0.0, np.ones((256, 128), np.float32))
        >>> colours.shape == (mask.sum(), 3), bool(mask[40, 64]), bool(mask[40, 0])
        (True, True, False)
    """
    sketch = _Sketch(person, pose)
    _torso(sketch)
    _bag(sketch)
    _head(sketch)
    for side in (-1, 1):
        _leg(sketch, side)
        _arm(sketch, side)
    parts, shades = sketch.render(size)
    mask = parts != Part.BACKGROUND
    if person.pattern != "plain":
        parts = np.where(np.isin(parts, (Part.UPPER, Part.SLEEVE)) & _pattern_mask(person, pose, size), np.uint8(Part.PATTERN), parts)
    outline = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(5)))
    slope = np.pad(np.subtract(outline[:, 2:], outline[:, :-2], dtype=np.float32), ((0, 0), (1, 1)))
    relief = 0.7 + (0.3 * outline[mask] - 1.3 * light * slope[mask]) / 255
    brightness = shades[mask] * (folds[mask] * relief / PLAIN_SHADE)
    return _part_colours(person)[parts[mask]] * brightness[:, None].astype(np.float32), mask
