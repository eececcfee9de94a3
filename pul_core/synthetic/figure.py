"""One person, drawn: a frozen `Person` and a frozen `Pose` in, a map of body parts and their colours out.

It knows limbs, clothes and directions. It does not know who wears what how often (`synthetic`), nor backgrounds, light casts and
lenses (`synthetic_camera`).

The figure is a skeleton in three dimensions (x to the person's left, h up, z forward; unit: body height) turned to the viewpoint and
drawn as flat shapes from far to near. Each pixel holds a part number and a shade; colours and patterns are painted afterwards.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from pul_core.errors import UserError

Colour = tuple[float, float, float]
Point = tuple[float, float]
Top = Literal["tshirt", "shirt", "jacket", "coat", "dress"]
Bottom = Literal["trousers", "shorts", "skirt"]
Pattern = Literal["plain", "stripes", "pinstripes", "checks", "dots", "logo", "two_tone"]
Bag = Literal["none", "backpack", "shoulder", "handbag"]
Hair = Literal["short", "bald", "bob", "long", "ponytail", "bun"]
Hat = Literal["none", "cap", "beanie"]

SHOULDER, HIP = 0.815, 0.50  # heights of the shoulder line and of the hip line, in body heights
FAR_SHADE, PLAIN_SHADE = 100, 128  # shade of a limb on the far side, and of everything else; 128 leaves a colour as it is


class Part(IntEnum):
    """What a pixel of the figure belongs to."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    HAT = 3
    UPPER = 4
    SLEEVE = 5
    INNER = 6
    LOWER = 7
    SHOES = 8
    BAG = 9
    SCARF = 10
    EYES = 11
    SECOND = 12  # the pattern's other colour


@dataclass(frozen=True)
class Person:
    """Everything that stays the same in all pictures of one identity. Colours are 0..1, lengths are in body heights."""

    build: float  # breadth, 1 is average
    legs: float  # leg length, 1 is average
    head: float  # head size, 1 is average
    skin: Colour
    hair: Hair
    hair_colour: Colour
    hat: Hat
    hat_colour: Colour
    top: Top
    top_colour: Colour
    second_colour: Colour  # of the pattern
    inner_colour: Colour  # of what shows under an open jacket
    pattern: Pattern
    pattern_size: float  # period of the pattern
    is_open: bool
    hem: float  # height at which the top, or a dress, ends
    bottom: Bottom
    bottom_colour: Colour
    bottom_hem: float  # height at which shorts or a skirt end
    leg_fit: float  # half width of a trouser leg at the shin
    has_side_stripe: bool
    shoe_colour: Colour
    boot: float  # height of the shaft, 0 for shoes
    bag: Bag
    bag_colour: Colour
    bag_size: float  # 1 is average
    bag_side: int  # -1 or 1
    has_scarf: bool
    scarf_colour: Colour


@dataclass(frozen=True)
class Pose:
    """How one picture shows a person."""

    view: float  # degrees: 0 faces the camera, 90 walks to the right edge, 180 shows the back
    phase: float  # radians of the walking cycle
    stride: float  # amplitude of the thighs, radians
    elevation: float  # 0 at eye height; 0.3 looks steeply down
    x: float  # pixels from the left edge to the middle of the person
    y: float  # pixels from the upper edge to the soles
    height: float  # pixels from the soles to the crown


class _Sketch:
    """Collects flat shapes with their depth and draws them from far to near."""

    def __init__(self, person: Person, pose: Pose) -> None:
        self.person, self.pose = person, pose
        self.cos, self.sin = math.cos(math.radians(pose.view)), math.sin(math.radians(pose.view))
        self.shapes: list[tuple[float, str, list[Point], tuple[int, int, int]]] = []

    def scale(self, h: float) -> float:
        """Return pixels per body height, at height h: seen from above, what is higher is nearer."""
        return self.pose.height * (1 - self.pose.elevation + 2 * self.pose.elevation * h)

    def toward(self, x: float, z: float) -> float:
        """Return how much nearer to the camera a point is than the body's axis."""
        return self.cos * z - self.sin * x

    def at(self, x: float, h: float, z: float) -> Point:
        """Return the pixel (column, row) of a point of the body."""
        tilt = self.pose.elevation
        row = self.pose.y - self.pose.height * ((1 - tilt) * h + tilt * h * h - 0.6 * tilt * self.toward(x, z))
        return self.pose.x + self.scale(h) * (self.cos * x + self.sin * z), row

    def breadth(self, wide: float, deep: float) -> float:
        """Return the half width on screen of an ellipse `wide` from side to side and `deep` from front to back."""
        return math.hypot(wide * self.cos, deep * self.sin) * self.person.build

    def polygon(self, part: Part, points: list[Point], depth: float, shade: int = PLAIN_SHADE) -> None:
        """Add a filled polygon given in pixels."""
        self.shapes.append((depth, "polygon", points, (part, shade, 0)))

    def ellipse(self, part: Part, centre: Point, radii: Point, depth: float, shade: int = PLAIN_SHADE) -> None:
        """Add a filled ellipse given in pixels."""
        (x, y), (rx, ry) = centre, radii
        self.shapes.append((depth, "ellipse", [(x - rx, y - ry), (x + rx, y + ry)], (part, shade, 0)))

    def limb(self, part: Part, ends: tuple[Point, Point], widths: tuple[float, float], depth: float, shade: int = PLAIN_SHADE) -> None:
        """Add a tapered bar with round ends, in pixels; `widths` are half widths."""
        (x0, y0), (x1, y1) = ends
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        a, b = widths
        self.polygon(
            part,
            [(x0 + nx * a, y0 + ny * a), (x1 + nx * b, y1 + ny * b), (x1 - nx * b, y1 - ny * b), (x0 - nx * a, y0 - ny * a)],
            depth,
            shade,
        )
        self.ellipse(part, ends[0], (a, a), depth, shade)
        self.ellipse(part, ends[1], (b, b), depth, shade)

    def tube(self, part: Part, rings: list[tuple[float, float, float]], depth: float) -> None:
        """Add a part of the trunk from (height, half breadth, half depth) rings, the topmost first."""
        left, right = [], []
        for h, wide, deep in rings:
            x, y = self.at(0, h, 0)
            half = self.breadth(wide, deep) * self.scale(h)
            left.append((x - half, y))
            right.append((x + half, y))
        self.polygon(part, left + right[::-1], depth)

    def render(self, size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Draw all shapes and return (parts, shades), each (rows, columns)."""
        image = Image.new("RGB", (size[1], size[0]), (0, PLAIN_SHADE, 0))
        draw = ImageDraw.Draw(image)
        for _, kind, points, fill in sorted(self.shapes, key=lambda shape: shape[0]):
            if kind == "polygon":
                draw.polygon(points, fill=fill)
            else:
                draw.ellipse(points, fill=fill)
        pixels = np.asarray(image)
        return pixels[..., 0], pixels[..., 1]


def _leg(sketch: _Sketch, side: int) -> None:
    """One leg: thigh, shin and shoe; trousers, shorts or bare."""
    person, pose = sketch.person, sketch.pose
    swing = pose.stride * math.sin(pose.phase) * side
    bend = 1.3 * pose.stride * max(0.0, math.cos(pose.phase) * side)
    hip_x, hip_h = 0.052 * side * person.build, HIP * person.legs
    upper, lower = 0.5 * hip_h, 0.5 * hip_h - 0.025
    knee = (hip_x, hip_h - upper * math.cos(swing), upper * math.sin(swing))
    ankle = (hip_x, knee[1] - lower * math.cos(swing - bend), knee[2] + lower * math.sin(swing - bend))
    depth = -2 + sketch.toward(hip_x, knee[2])
    shade = FAR_SHADE if sketch.toward(hip_x, 0) < -0.02 else PLAIN_SHADE
    a, b, c = sketch.at(hip_x, hip_h, 0), sketch.at(*knee), sketch.at(*ankle)
    scale, build = sketch.scale(0.25), person.build
    thigh, shin = (0.062 * build * scale, 0.042 * build * scale), (0.036 * build * scale, 0.024 * scale)
    fit = person.leg_fit * scale
    long = person.bottom == "trousers"
    sketch.limb(Part.LOWER if long else Part.SKIN, (b, c), (max(shin[0], fit), fit) if long else shin, depth, shade)
    sketch.limb(Part.LOWER if person.bottom != "skirt" else Part.SKIN, (a, b), (thigh[0], max(thigh[1], fit if long else 0)), depth, shade)
    if person.bottom == "shorts":
        share = min(1.0, max(0.0, (knee[1] - person.bottom_hem) / lower))
        end = (b[0] + (c[0] - b[0]) * share, b[1] + (c[1] - b[1]) * share)
        sketch.limb(Part.LOWER, (b, end), (thigh[1] * 1.1, thigh[1] * 1.1), depth, shade)
    if long and person.has_side_stripe and shade == PLAIN_SHADE:
        edge = abs(sketch.cos) * side * fit * 0.8 * (1 if sketch.cos >= 0 else -1)
        sketch.limb(Part.INNER, ((a[0] + edge, a[1]), (c[0] + edge, c[1])), (0.006 * scale, 0.006 * scale), depth + 1e-3, shade)
    if person.boot > 0:
        share = min(1.0, person.boot / lower)
        top = (c[0] + (b[0] - c[0]) * share, c[1] + (b[1] - c[1]) * share)
        sketch.limb(Part.SHOES, (top, c), (0.034 * scale, 0.03 * scale), depth + 2e-3, shade)
    toe = sketch.at(ankle[0], max(0.0, ankle[1] - 0.022), ankle[2] + 0.085)
    heel = sketch.at(ankle[0], max(0.0, ankle[1] - 0.015), ankle[2] - 0.015)
    sketch.limb(Part.SHOES, (heel, toe), (0.025 * scale, 0.019 * scale), depth + 3e-3, shade)


def _arm(sketch: _Sketch, side: int) -> None:
    """One arm, and what its hand carries."""
    person, pose = sketch.person, sketch.pose
    thick = {"tshirt": 0.0, "dress": 0.0, "shirt": 0.001, "jacket": 0.005, "coat": 0.007}[person.top]
    carries = person.bag == "handbag" and side == person.bag_side
    swing = -0.8 * pose.stride * math.sin(pose.phase) * side * (0.4 if carries else 1.0)
    shoulder = (side * (0.1 * person.build + thick), SHOULDER - 0.03, 0.0)
    elbow = (shoulder[0] + side * 0.022, shoulder[1] - 0.165 * math.cos(swing), 0.165 * math.sin(swing))
    fore = swing + (0.1 if carries else 0.35)
    wrist = (elbow[0] - side * 0.004, elbow[1] - 0.14 * math.cos(fore), elbow[2] + 0.14 * math.sin(fore))
    near = sketch.toward(shoulder[0], 0)
    depth = near + 0.03 if near > -0.06 else near - 0.1
    shade = FAR_SHADE if near < -0.06 else PLAIN_SHADE - 12
    a, b, c = sketch.at(*shoulder), sketch.at(*elbow), sketch.at(*wrist)
    scale = sketch.scale(0.7)
    short = person.top in ("tshirt", "dress")
    sketch.ellipse(Part.SKIN, c, (0.021 * scale, 0.024 * scale), depth, shade)
    sketch.limb(Part.SKIN if short else Part.SLEEVE, (b, c), ((0.025 + thick) * scale, (0.019 + thick) * scale), depth + 1e-3, shade)
    end = (a[0] + 0.7 * (b[0] - a[0]), a[1] + 0.7 * (b[1] - a[1])) if short else b
    if short:
        sketch.limb(Part.SKIN, (a, b), (0.028 * scale, 0.025 * scale), depth + 1e-3, shade)
    sketch.limb(Part.SLEEVE, (a, end), ((0.031 + thick) * scale, (0.028 + thick) * scale), depth + 2e-3, shade)
    if carries:
        size = person.bag_size * scale
        half = 0.02 * size + 0.035 * size * abs(sketch.sin)
        rows = (c[1] + 0.03 * scale, c[1] + 0.03 * scale + 0.085 * size)
        sketch.polygon(
            Part.BAG,
            [(c[0] - half, rows[0]), (c[0] + half, rows[0]), (c[0] + half * 1.2, rows[1]), (c[0] - half * 1.2, rows[1])],
            depth + 3e-3,
        )
        sketch.limb(Part.BAG, (c, (c[0], rows[0])), (0.008 * scale, 0.01 * scale), depth - 1e-3)


def _trunk(sketch: _Sketch) -> None:
    """Hips or skirt, the top down to its hem, and what an open front shows."""
    person = sketch.person
    hip = HIP * person.legs
    thick = {"tshirt": 0.0, "dress": 0.0, "shirt": 0.002, "jacket": 0.008, "coat": 0.01}[person.top]
    if person.bottom == "skirt":
        sketch.tube(Part.LOWER, [(hip + 0.1, 0.088, 0.07), (hip, 0.105, 0.085), (person.bottom_hem, 0.125, 0.11)], -1.0)
    else:
        sketch.tube(Part.LOWER, [(hip + 0.08, 0.09, 0.07), (hip, 0.1, 0.08), (hip - 0.04, 0.1, 0.08)], -1.0)
    flare = 0.03 if person.top == "dress" else 0.012 if person.top == "coat" else 0.0
    rings = [
        (SHOULDER + 0.03, 0.04, 0.045),
        (SHOULDER, 0.092 + thick, 0.058 + thick),
        (0.74, 0.102 + thick, 0.074 + thick),
        (0.62, 0.088 + thick, 0.064 + thick),
        (hip + 0.01, 0.096 + thick, 0.078 + thick),
    ]
    if person.hem < hip:
        rings.append((person.hem, 0.1 + thick + flare, 0.085 + thick + flare))
    sketch.tube(Part.UPPER, rings, 0.0)
    if sketch.cos > 0.15:
        half = (0.042 if person.is_open else 0.0) * sketch.cos * person.build
        if half > 0:
            shift = 0.07 * sketch.sin
            rows = [(SHOULDER + 0.02, 0.4), (0.7, 1.0), (max(person.hem, hip - 0.05), 1.25)]
            left = [(sketch.at(0, h, 0)[0] + (shift - half * w) * sketch.scale(h), sketch.at(0, h, 0)[1]) for h, w in rows]
            right = [(sketch.at(0, h, 0)[0] + (shift + half * w) * sketch.scale(h), sketch.at(0, h, 0)[1]) for h, w in rows]
            sketch.polygon(Part.INNER, left + right[::-1], 1e-3)
        x, y = sketch.at(0, SHOULDER + 0.03, 0.05)
        scale = sketch.scale(SHOULDER)
        sketch.polygon(Part.SKIN, [(x - 0.03 * scale, y), (x + 0.03 * scale, y), (x, y + 0.05 * scale * sketch.cos)], 2e-3)


def _bag(sketch: _Sketch) -> None:
    """A backpack with its straps, or a bag on a strap across the chest; handbags hang on the arm."""
    person, size = sketch.person, sketch.person.bag_size
    if person.bag == "backpack":
        depth = sketch.toward(0, -0.12)
        x, top = sketch.at(0, 0.8, -0.11)
        bottom = sketch.at(0, 0.8 - 0.24 * size, -0.11)[1]
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
        sketch.limb(
            Part.BAG,
            ((x - half * 0.7, (top + 2 * bottom) / 3), (x + half * 0.7, (top + 2 * bottom) / 3)),
            (1.0, 1.0),
            depth * 2 + 1e-3,
            FAR_SHADE - 20,
        )
        if sketch.cos > -0.3:
            for side in (-1, 1):
                ends = (sketch.at(side * 0.065, SHOULDER + 0.015, 0.02), sketch.at(side * 0.075, 0.68, 0.06))
                sketch.limb(Part.BAG, ends, (0.013 * sketch.scale(0.8),) * 2, 0.02 + 0.01 * sketch.toward(side * 0.06, 0))
    elif person.bag == "shoulder":
        side = person.bag_side
        front = 0.065 if sketch.cos >= 0 else -0.065
        ends = (sketch.at(-side * 0.06, SHOULDER + 0.01, 0), sketch.at(side * 0.11 * person.build, 0.56, front))
        sketch.limb(Part.BAG, ends, (0.011 * sketch.scale(0.8),) * 2, 0.025)
        x, y = sketch.at(side * 0.125 * person.build, 0.53, 0)
        half, tall = (0.035 + 0.045 * abs(sketch.sin)) * size * sketch.scale(0.5), 0.1 * size * sketch.scale(0.5)
        depth = sketch.toward(side * 0.125, 0)
        sketch.polygon(
            Part.BAG,
            [(x - half, y - tall / 3), (x + half, y - tall / 3), (x + half, y + tall), (x - half, y + tall)],
            depth + 0.08 if depth > -0.08 else depth,
        )


def _hat(sketch: _Sketch, centre: Point, radii: Point, face: float) -> None:
    """A cap with its brim forward, or a beanie; and a scarf round the neck."""
    person, scale = sketch.person, sketch.scale(0.93) * sketch.person.head
    (x, y), (rx, ry) = centre, radii
    if person.hat != "none":
        low = y - 0.28 * ry
        points = [
            (x - rx * 1.15, low),
            (x - rx * 0.95, y - 0.9 * ry),
            (x, y - 1.2 * ry),
            (x + rx * 0.95, y - 0.9 * ry),
            (x + rx * 1.15, low),
        ]
        sketch.polygon(Part.HAT, points, 1.4)
        if person.hat == "cap" and sketch.cos > -0.5:
            tip = (x + 0.075 * scale * sketch.sin, low + 0.1 * ry)
            sketch.limb(Part.HAT, ((x + face, low), tip), (rx * (0.3 + 0.6 * max(0.0, sketch.cos)) * 0.5, 0.01 * scale), 1.5, FAR_SHADE)
    if person.has_scarf:
        sketch.ellipse(Part.SCARF, sketch.at(0, SHOULDER + 0.035, 0.01), (0.068 * scale, 0.034 * scale), 1.12)


def _head(sketch: _Sketch) -> None:
    """Neck, face, hair and hat; the hair covers what the viewpoint leaves of the face."""
    person = sketch.person
    scale = sketch.scale(0.93) * person.head
    rx, ry = 0.047 * scale, 0.064 * scale
    x, y = sketch.at(0, 0.926, 0.012)
    face = 0.02 * scale * sketch.sin  # how far the face lies off the head's middle
    sketch.limb(Part.SKIN, (sketch.at(0, SHOULDER + 0.02, 0), (x, y + ry * 0.6)), (0.032 * scale, 0.03 * scale), 0.5, FAR_SHADE + 10)
    if person.hair != "bald":
        sketch.ellipse(Part.HAIR, (x - 0.5 * face, y - 0.12 * ry), (rx * 1.13, ry * 1.0), 1.0)
    drop = {"short": 0.0, "bald": 0.0, "bob": 0.055, "long": 0.15, "ponytail": 0.0, "bun": 0.0}[person.hair] * scale
    if drop > 0:
        behind = 0.4 if sketch.cos > 0.5 else 1.05
        centre = x - 1.1 * face
        wide = rx * (1.2 if abs(sketch.sin) < 0.7 else 0.85)
        sketch.polygon(
            Part.HAIR,
            [
                (centre - wide, y - 0.2 * ry),
                (centre + wide, y - 0.2 * ry),
                (centre + wide * 0.9, y + 0.5 * ry + drop),
                (centre - wide * 0.9, y + 0.5 * ry + drop),
            ],
            behind,
        )
    if person.hair == "ponytail" and sketch.cos < 0.6:
        root = (x - 2.2 * face, y - 0.2 * ry)
        sketch.limb(Part.HAIR, (root, (x - 3.2 * face, y + 0.12 * scale)), (0.022 * scale, 0.012 * scale), 1.3)
    if person.hair == "bun":
        sketch.ellipse(Part.HAIR, (x - 1.6 * face, y - 0.95 * ry), (0.026 * scale, 0.026 * scale), 1.3)
    if sketch.cos > -0.75 or person.hair == "bald":
        turned = max(0.0, min(1.0, 0.62 + 0.5 * sketch.cos)) if person.hair != "bald" else 1.0
        sketch.ellipse(Part.SKIN, (x + 1.2 * face * (2 - turned) * 0.6, y + 0.12 * ry), (rx * (0.5 + 0.48 * turned), ry * 0.88), 1.1)
    if sketch.cos > 0.1:
        for side in (-1, 1):
            sketch.ellipse(Part.EYES, (x + 1.3 * face + side * rx * 0.42 * sketch.cos, y), (rx * 0.17, ry * 0.08), 1.15)
    _hat(sketch, (x, y), (rx, ry), face)


def _pattern_mask(person: Person, pose: Pose, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return where the top shows its second colour, (rows, columns)."""
    period = person.pattern_size
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
        case "two_tone":
            mask = v < 2.2 * period
        case _:
            mask = np.zeros((1, 1), dtype=np.bool_)
    return np.broadcast_to(mask, size)


def _colours(person: Person) -> npt.NDArray[np.float32]:
    """Return one row a part: its colour, 0..1."""
    table = {
        Part.BACKGROUND: (0.0, 0.0, 0.0),
        Part.SKIN: person.skin,
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
        Part.SECOND: person.second_colour,
    }
    return np.array([table[part] for part in Part], dtype=np.float32)


def draw_person(
    person: Person, pose: Pose, size: tuple[int, int], light: float, folds: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Draw one person without background.

    The skeleton is turned to `pose.view`, drawn far to near as parts, then painted: colour of the part x shade of the limb x light from
    the side (the slope of the blurred outline) x folds.

    Args:
        person: who.
        pose: how, in pixels of this canvas.
        size: (rows, columns) of the canvas, pixels.
        light: -1 from the left edge, 1 from the right edge, 0 from the front.
        folds: relative brightness of the cloth, (rows, columns), about 1.

    Returns:
        (colours, mask): (n, 3), about 0..1, of the n pixels on which `mask` (rows, columns) is true, row by row.

    Raises:
        UserError: `folds` is not of the canvas's size.

    Source: ours.

    >>> import numpy as np
    >>> from pul_core.synthetic.people import make_person
    >>> pose = Pose(view=0, phase=0, stride=0.4, elevation=0, x=64, y=245, height=230)
    >>> colours, mask = draw_person(make_person("source", 10, 1), pose, (256, 128), 0.0, np.ones((256, 128), np.float32))
    >>> colours.shape == (mask.sum(), 3), bool(mask[40, 64]), bool(mask[40, 0])
    (True, True, False)
    """
    if folds.shape != size:
        raise UserError(f"folds have shape {folds.shape}, the canvas {size}: give one brightness a pixel")
    sketch = _Sketch(person, pose)
    _trunk(sketch)
    _bag(sketch)
    _head(sketch)
    for side in (-1, 1):
        _leg(sketch, side)
        _arm(sketch, side)
    parts, shades = sketch.render(size)
    mask = parts != Part.BACKGROUND
    if person.pattern != "plain":
        cloth = (parts == Part.UPPER) | (parts == Part.SLEEVE)
        parts = np.where(cloth & _pattern_mask(person, pose, size), np.uint8(Part.SECOND), parts)
    outline = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(5)))
    slope = np.zeros(size, dtype=np.float32)
    slope[:, 1:-1] = np.subtract(outline[:, 2:], outline[:, :-2], dtype=np.float32)
    relief = 0.7 + (0.3 * outline[mask] - 1.3 * light * slope[mask]) / 255
    brightness = shades[mask] * (folds[mask] * relief / PLAIN_SHADE)
    return _colours(person)[parts[mask]] * brightness[:, None].astype(np.float32), mask
