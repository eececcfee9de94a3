"""Synthetic pedestrians in two domains: which people and cameras there are, which pictures exist, and one picture from its seed.

Made to be like a small Market-1501 beside another small set: people who dress alike, cameras that do not see alike, boxes that are
off, strangers and bad boxes in the gallery. It says nothing about real accuracy: it lets the whole loop run, be tested and be shown
where no real set may be copied. Everything follows from (seed, domain, number), so no picture depends on how many others there are.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from pul_core.errors import UserError
from pul_core.synthetic.camera import Camera, Floats, Ground, Occluder, Wall, background, draw_occluder, expose, smooth_noise
from pul_core.synthetic.figure import Bag, Bottom, Colour, Hair, Hat, Pattern, Person, Pose, Top, draw_person

GENERATOR_VERSION = 2  # raise it whenever a seed gives other pictures

# --- difficulty: the only numbers to tune, on seeds 10, 11 and 12 (0, 1 and 2 are kept for judging) ---
LOOKALIKE_SHARE = 0.55  # share of people who wear one of the domain's common outfits; small things tell them apart
COMMON_OUTFITS = 40  # how many common outfits a domain has
SHADE_SPREAD = 0.14  # spread (log) of brightness within one named colour
CAST_DOMAIN = 0.12  # spread (log gain a channel) between the domains' colour casts
CAST_ZONE = 0.08  # between zones: pairs of cameras (1-2, 3-4, 5-6) that see alike, the bridges
CAST_CAMERA = 0.03  # between the cameras of one zone
GAIN_CAMERA = 0.16  # spread (log) of the cameras' brightness (gamma)
GAIN_SHOT = 0.07  # spread (log) of brightness between pictures of one camera
BLUR = {"source": (0.0, 0.5), "target": (0.2, 0.9)}  # radius, pixels: from, to
RESOLUTION = {"source": (0.7, 1.0), "target": (0.5, 0.9)}  # share of pixels a sensor really has: from, to
NOISE = {"source": (0.005, 0.02), "target": (0.01, 0.035)}  # standard deviation: from, to
ELEVATION = {"source": (0.02, 0.12), "target": (0.10, 0.24)}  # how steeply cameras look down: from, to
BOX_SHIFT = 0.035  # detector: standard deviation of the shift, in box widths and heights
BOX_SCALE = 0.05  # detector: standard deviation (log) of the size
OCCLUSION_SHARE = {"source": 0.08, "target": 0.12}  # share of pictures with a thing before the person
COMPANION_SHARE = {"source": 0.06, "target": 0.10}  # share of pictures with another pedestrian beside or before the person
VIEW_SPREAD = 14.0  # degrees within one pass of a person before a camera
OTHER_VIEW_SHARE = 0.25  # share of pictures taken from the camera's other direction: somebody turns round or comes back
CAMERAS_AN_IDENTITY = {2: 0.06, 3: 0.15, 4: 0.29, 5: 0.32, 6: 0.18}  # share of people seen by so many cameras; mean 4.41
IMAGES_SKEW = 2.0  # shape of the gamma distribution of images an identity; smaller is more skewed
FALSE_BOX_SHARE = 0.4  # share of distractors and junk that show no whole person
# ------------------------------------------------------------------------------------------------------

Key = TypeVar("Key")
Domain = Literal["source", "target"]
Folder = Literal["bounding_box_train", "query", "bounding_box_test"]
CODES: dict[str, int] = {"source": 1, "target": 2}
PERSON, CAMERA, PLAN, TRACK, SHOT, OUTFIT, ZONE = range(7)  # what a random stream is for
FIRST_PID = {"source": 1, "target": 5001}  # disjoint numbers, four digits
STRANGERS = 100_000  # numbers from here on are people nobody asks for
DISTRACTOR_PID, JUNK_PID = 0, -1
CANVAS = (256, 128)  # rows, columns drawn; the picture is half as large

PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (30, 30, 33),
    "charcoal": (62, 63, 68),
    "grey": (122, 122, 124),
    "silver": (176, 177, 180),
    "white": (228, 227, 222),
    "navy": (36, 42, 76),
    "blue": (58, 92, 156),
    "sky": (136, 172, 208),
    "denim": (74, 94, 132),
    "indigo": (46, 54, 82),
    "beige": (190, 172, 138),
    "brown": (98, 70, 50),
    "olive": (92, 92, 62),
    "green": (54, 116, 76),
    "red": (172, 46, 48),
    "wine": (104, 36, 50),
    "pink": (214, 146, 164),
    "yellow": (216, 184, 72),
    "orange": (206, 112, 54),
    "purple": (104, 72, 128),
    "teal": (44, 116, 124),
}
SKINS: tuple[Colour, ...] = ((0.76, 0.60, 0.51), (0.70, 0.53, 0.43), (0.62, 0.46, 0.35), (0.46, 0.33, 0.25), (0.32, 0.23, 0.19))
HAIR_COLOURS = {"black": 5.0, "charcoal": 2.0, "brown": 3.0, "beige": 1.5, "grey": 1.0, "wine": 0.4}


@dataclass(frozen=True)
class Wardrobe:
    """How often people of a domain wear what: name -> weight."""

    tops: dict[Top, float]
    bottoms: dict[Bottom, float]
    top_colours: dict[str, float]
    bottom_colours: dict[str, float]
    patterns: dict[Pattern, float]
    bags: dict[Bag, float]
    hats: dict[Hat, float]
    scarf: float  # share of people with a scarf
    boots: float  # share of people in boots


# fmt: off
SUMMER = Wardrobe(  # a bright campus
    tops={"tshirt": 5, "shirt": 2, "jacket": 1.2, "coat": 0.1, "dress": 1},
    bottoms={"trousers": 4, "shorts": 3, "skirt": 1.5},
    top_colours={
        "white": 4, "black": 3, "grey": 1.5, "silver": 1, "navy": 1.2, "blue": 1.5, "sky": 1.2, "red": 1.2, "pink": 1, "yellow": 0.7,
        "green": 0.7, "purple": 0.5, "teal": 0.5, "orange": 0.4,
    },
    bottom_colours={"denim": 4, "indigo": 1.5, "black": 3, "beige": 1.2, "grey": 0.8, "white": 0.7, "navy": 0.7, "olive": 0.4},
    patterns={"plain": 5, "stripes": 1.3, "pinstripes": 0.4, "checks": 0.8, "dots": 0.5, "logo": 2, "two_tone": 0.6},
    bags={"none": 4, "backpack": 3.5, "shoulder": 1.5, "handbag": 1},
    hats={"none": 9, "cap": 1.2},
    scarf=0.0,
    boots=0.06,
)
AUTUMN = Wardrobe(  # a city in October
    tops={"tshirt": 1.5, "shirt": 2.5, "jacket": 4, "coat": 1.8, "dress": 0.4},
    bottoms={"trousers": 7, "shorts": 0.7, "skirt": 1},
    top_colours={
        "black": 4, "charcoal": 1.8, "grey": 1.5, "navy": 2, "beige": 1.2, "brown": 1, "olive": 1.2, "white": 1.2, "blue": 1, "red": 0.9,
        "wine": 0.8, "green": 0.5, "orange": 0.4, "teal": 0.4, "purple": 0.3, "silver": 0.6,
    },
    bottom_colours={"black": 3.5, "indigo": 2.5, "denim": 2.5, "charcoal": 1.2, "beige": 0.9, "brown": 0.6, "olive": 0.5, "grey": 0.7},
    patterns={"plain": 6, "stripes": 0.8, "pinstripes": 0.4, "checks": 1.2, "dots": 0.2, "logo": 1.2, "two_tone": 1.2},
    bags={"none": 3.5, "backpack": 2.5, "shoulder": 2, "handbag": 2},
    hats={"none": 7, "cap": 0.8, "beanie": 1.5},
    scarf=0.18,
    boots=0.25,
)
WARDROBES: dict[str, Wardrobe] = {"source": SUMMER, "target": AUTUMN}
HAIRS: dict[Hair, float] = {"short": 5, "bald": 0.6, "bob": 1.5, "long": 2, "ponytail": 1.3, "bun": 0.7}
GROUNDS: dict[str, tuple[Ground, ...]] = {"source": ("pavement", "grass", "tiles"), "target": ("asphalt", "stairs", "pavement", "tiles")}
WALLS: dict[str, tuple[Wall, ...]] = {"source": ("hedge", "concrete", "brick"), "target": ("shop", "brick", "fence", "concrete")}
VIEWS = ((0.0, 180.0), (90.0, 270.0), (30.0, 200.0), (180.0, 330.0), (60.0, 240.0), (135.0, 315.0))
SHOE_COLOURS = {"black": 4, "white": 3, "grey": 1.5, "brown": 1.5, "navy": 0.7, "red": 0.6, "beige": 0.6}
BAG_COLOURS = {
    "black": 4, "charcoal": 1, "navy": 1.2, "brown": 1.5, "red": 1, "grey": 1, "beige": 0.8, "green": 0.5, "pink": 0.5, "blue": 0.7,
}
# fmt: on


@dataclass(frozen=True)
class Sizes:
    """How large a domain is.

    `queries` come on top of the gallery. Distractors and junk are shares of the gallery's images.
    """

    train_identities: int
    train_images: int
    test_identities: int
    queries: int
    gallery_images: int
    distractor_share: float = 0.15
    junk_share: float = 0.20
    cameras: int = 6


SIZES: dict[str, Sizes] = {
    "source": Sizes(train_identities=150, train_images=2000, test_identities=30, queries=100, gallery_images=350),
    "target": Sizes(train_identities=150, train_images=1800, test_identities=100, queries=350, gallery_images=1300),
}


@dataclass(frozen=True)
class PlannedImage:
    """One picture that is to be drawn, and its place in the layout of Market-1501."""

    folder: Folder
    pid: int  # as the file name says: 0 distractor, -1 junk
    camid: int
    frame: int
    person: int  # who is drawn; strangers are numbered from STRANGERS on
    shot: int  # which picture of this person by this camera
    is_whole: bool = True  # false: a bad box, half a person or none

    @property
    def name(self) -> str:
        """The file name."""
        person = "-1" if self.pid == JUNK_PID else f"{self.pid:04d}"
        return f"{person}_c{self.camid}s1_{self.frame:06d}_00.jpg"


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _pick(rng: np.random.Generator, weights: dict[Key, float]) -> Key:
    """Draw a key with a probability in proportion to its weight."""
    edges = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def _colour(rng: np.random.Generator, weights: dict[str, float]) -> Colour:
    """Draw a colour by name; cloth of one name differs a little in brightness and hue."""
    base = np.array(PALETTE[_pick(rng, weights)]) / 255
    r, g, b = np.clip(base * math.exp(rng.normal(0, SHADE_SPREAD)) * np.exp(rng.normal(0, 0.04, 3)), 0.02, 0.97).tolist()
    return r, g, b


def _outfit(domain: Domain, rng: np.random.Generator) -> dict[str, object]:
    """Draw the large things of a person's clothes: garments and their colours."""
    wardrobe = WARDROBES[domain]
    top = _pick(rng, wardrobe.tops)
    hem = {"tshirt": (0.44, 0.48), "shirt": (0.43, 0.48), "jacket": (0.41, 0.47), "coat": (0.26, 0.36), "dress": (0.24, 0.36)}[top]
    return {
        "top": top,
        "top_colour": _colour(rng, wardrobe.top_colours),
        "hem": float(rng.uniform(*hem)),
        "bottom": _pick(rng, wardrobe.bottoms) if top != "dress" else "skirt",
        "bottom_colour": _colour(rng, wardrobe.bottom_colours),
        "is_open": top in ("jacket", "coat") and rng.random() < 0.6,
    }


@lru_cache(maxsize=4096)
def make_person(domain: Domain, seed: int, number: int) -> Person:
    """Return one identity.

    With probability `LOOKALIKE_SHARE` the garments and their colours are one of the domain's common outfits, else the person's own;
    everything small (pattern, bag, shoes, hair, proportions, what is under the jacket) is always the person's own.

    Args:
        domain: whose wardrobe.
        seed: of the data set.
        number: which person; not negative.

    Returns:
        The same person for the same three arguments.

    Raises:
        UserError: `seed` or `number` is negative.

    Source: ours.

    >>> make_person("source", 10, 1) == make_person("source", 10, 1) != make_person("target", 10, 1)
    True
    """
    rng, wardrobe = _rng(seed, CODES[domain], PERSON, number), WARDROBES[domain]
    outfit = _outfit(domain, rng)
    common = int(rng.integers(COMMON_OUTFITS))
    if rng.random() < LOOKALIKE_SHARE:
        outfit = _outfit(domain, _rng(seed, CODES[domain], OUTFIT, common))
    pattern = _pick(rng, wardrobe.patterns)
    period = {"stripes": (0.035, 0.08), "pinstripes": (0.025, 0.05), "checks": (0.04, 0.08), "dots": (0.03, 0.05)}
    return Person(
        **outfit,  # type: ignore[arg-type]  # _outfit returns exactly these fields
        build=float(np.clip(rng.normal(1, 0.11), 0.78, 1.35)),
        legs=float(np.clip(rng.normal(1, 0.035), 0.92, 1.08)),
        head=float(np.clip(rng.normal(1, 0.06), 0.88, 1.15)),
        skin=SKINS[int(rng.choice(len(SKINS), p=(0.3, 0.3, 0.2, 0.1, 0.1)))],
        hair=_pick(rng, HAIRS),
        hair_colour=_colour(rng, HAIR_COLOURS),
        hat=_pick(rng, wardrobe.hats),
        hat_colour=_colour(rng, wardrobe.top_colours),
        second_colour=_colour(rng, wardrobe.top_colours),
        inner_colour=_colour(rng, wardrobe.top_colours),
        pattern=pattern,
        pattern_size=float(rng.uniform(*period.get(pattern, (0.05, 0.09)))),
        bottom_hem=float(rng.uniform(0.2, 0.36)),
        leg_fit=float(rng.uniform(0.027, 0.046)),
        has_side_stripe=bool(rng.random() < 0.08),
        shoe_colour=_colour(rng, SHOE_COLOURS),
        boot=float(rng.uniform(0.07, 0.18)) if rng.random() < wardrobe.boots else 0.0,
        bag=_pick(rng, wardrobe.bags),
        bag_colour=_colour(rng, BAG_COLOURS),
        bag_size=float(rng.uniform(0.8, 1.2)),
        bag_side=int(rng.choice((-1, 1))),
        has_scarf=bool(rng.random() < wardrobe.scarf),
        scarf_colour=_colour(rng, wardrobe.top_colours),
    )


@lru_cache(maxsize=64)
def make_camera(domain: Domain, seed: int, camid: int) -> Camera:
    """Return one camera.

    Its log gains are the sum of the domain's, its zone's (pairs of cameras) and its own deviation, so cameras of one zone see alike.

    Args:
        domain: which network.
        seed: of the data set.
        camid: from 1.

    Returns:
        The same camera for the same three arguments.

    Raises:
        UserError: `camid` is below 1.

    Source: ours.

    >>> make_camera("source", 10, 1).place_seed != make_camera("source", 10, 2).place_seed
    True
    """
    if camid < 1:
        raise UserError(f"camid is {camid}: cameras are numbered from 1")
    code, zone = CODES[domain], (camid - 1) // 2
    of_domain, of_zone, own = _rng(seed, code, ZONE), _rng(seed, code, ZONE, 1 + zone), _rng(seed, code, CAMERA, camid)
    gains = np.exp(of_domain.normal(0, CAST_DOMAIN, 3) + of_zone.normal(0, CAST_ZONE, 3) + own.normal(0, CAST_CAMERA, 3))
    fade = float(np.clip(of_zone.normal(0.12, 0.08) + own.normal(0, 0.03), 0, 0.4))  # share of the colour that turns grey
    matrix = gains[:, None] * ((1 - fade) * np.eye(3) + fade / 3)
    gamma = math.exp(of_zone.normal(0, GAIN_CAMERA) + own.normal(0, 0.5 * GAIN_CAMERA))
    views = VIEWS[int(of_zone.integers(len(VIEWS)))]
    turned = float(own.normal(0, 10))
    return Camera(
        place_seed=int(own.integers(2**31)),
        ground=GROUNDS[domain][int(own.integers(len(GROUNDS[domain])))],
        wall=WALLS[domain][int(own.integers(len(WALLS[domain])))],
        horizon=float(own.uniform(0.25, 0.6)),
        light=float(own.uniform(-0.8, 0.8)),
        cast=tuple(tuple(row) for row in matrix.tolist()),
        gamma=gamma,
        contrast=float(np.clip(of_zone.normal(1, 0.08) + own.normal(0, 0.04), 0.75, 1.25)),
        haze=float(of_zone.uniform(0, 0.05)),
        blur=float(own.uniform(*BLUR[domain])),
        resolution=float(own.uniform(*RESOLUTION[domain])),
        noise=float(own.uniform(*NOISE[domain])),
        views=tuple((view + turned) % 360 for view in views),
        elevation=float(own.uniform(*ELEVATION[domain])),
        scale=float(own.uniform(0.84, 0.92)),
    )


def _passes(rng: np.random.Generator, pids: range, cameras: int, images: int) -> list[tuple[int, int]]:
    """Draw which people pass which cameras: (pid, camid), at least two cameras a person, no more passes than images."""
    most = min(cameras, images // len(pids))
    shares = {count: share for count, share in CAMERAS_AN_IDENTITY.items() if count <= most} or {most: 1.0}
    return [(pid, int(camera) + 1) for pid in pids for camera in sorted(rng.permutation(cameras)[: _pick(rng, shares)])]


def _allot(rng: np.random.Generator, passes: list[tuple[int, int]], images: int) -> list[int]:
    """Draw how many images each pass has: one at least, skewed over people, `images` in all."""
    people = {pid: rng.gamma(IMAGES_SKEW) for pid, _ in passes}
    weights = np.array([people[pid] for pid, _ in passes]) * rng.gamma(3.0, size=len(passes))
    return list(1 + rng.multinomial(images - len(passes), weights / weights.sum()))


def _asked(rng: np.random.Generator, passes: list[tuple[int, int]], queries: int) -> set[tuple[int, int]]:
    """Draw the passes that have a query: every person once before any person twice, every pass once at most."""
    order = [passes[i] for i in rng.permutation(len(passes))]
    first = {pid: (pid, camid) for pid, camid in reversed(order)}
    rest = [one for one in order if first[one[0]] != one]
    return set((list(first.values()) + rest)[:queries])


def _check(sizes: Sizes) -> None:
    """Refuse sizes that no data set can have."""
    if not 2 <= sizes.cameras <= 9:
        raise UserError(f"{sizes.cameras} cameras: people must pass two, and 9 is the limit")
    if sizes.train_images < 2 * sizes.train_identities or min(sizes.train_identities, sizes.test_identities) < 1:
        raise UserError("every identity needs two cameras: give at least 2 train_images a train identity, and one identity a split")
    if round(sizes.gallery_images * (1 - sizes.distractor_share - sizes.junk_share)) < 2 * sizes.test_identities:
        raise UserError("gallery_images without distractors and junk must be at least 2 a test identity")
    if sizes.queries < sizes.test_identities or sizes.train_identities + sizes.test_identities > 4999:
        raise UserError("give at least one query a test identity, and at most 4,999 identities")


def plan_domain(domain: Domain, seed: int, sizes: Sizes | None = None) -> tuple[PlannedImage, ...]:
    """List every picture of a domain.

    A query is one more picture of an (identity, camera) of the gallery, at most one of each, and every test identity has one; so every
    query has a right answer on another camera. Distractors are pictures of strangers, junk are bad boxes.

    Args:
        domain: which one.
        seed: of the data set.
        sizes: how large; the domain's default when None.

    Returns:
        The pictures in the order of their folders, people and cameras; names are unique in a folder.

    Raises:
        UserError: the sizes contradict each other.

    Source: the layout and the shares are Market-1501's; the rest is ours.

    >>> plan = plan_domain("target", 10)
    >>> sum(image.folder == "query" for image in plan), sum(image.folder == "bounding_box_test" for image in plan)
    (350, 1300)
    >>> PlannedImage("query", pid=5001, camid=2, frame=17, person=5001, shot=0).name
    '5001_c2s1_000017_00.jpg'
    """
    sizes = sizes or SIZES[domain]
    _check(sizes)
    rng, first = _rng(seed, CODES[domain], PLAN), FIRST_PID[domain]
    train = range(first, first + sizes.train_identities)
    test = range(train.stop, train.stop + sizes.test_identities)
    rows: list[tuple[Folder, int, int, int, int, bool]] = []
    passes = _passes(rng, train, sizes.cameras, sizes.train_images)
    for (pid, camid), count in zip(passes, _allot(rng, passes, sizes.train_images), strict=True):
        rows += [("bounding_box_train", pid, camid, pid, shot, True) for shot in range(count)]
    distractors, junk = round(sizes.gallery_images * sizes.distractor_share), round(sizes.gallery_images * sizes.junk_share)
    known = sizes.gallery_images - distractors - junk
    passes = _passes(rng, test, sizes.cameras, known)
    counts = _allot(rng, passes, known)
    if sizes.queries > len(passes):
        raise UserError(f"{sizes.queries} queries, but people pass cameras only {len(passes)} times: give fewer")
    rows += [("query", pid, camid, pid, 0, True) for pid, camid in sorted(_asked(rng, passes, sizes.queries))]
    for (pid, camid), count in zip(passes, counts, strict=True):
        rows += [("bounding_box_test", pid, camid, pid, shot, True) for shot in range(1, 1 + count)]
    for i in range(distractors + junk):
        pid, camid = (DISTRACTOR_PID if i < distractors else JUNK_PID), int(rng.integers(sizes.cameras)) + 1
        whole = pid == DISTRACTOR_PID and rng.random() >= FALSE_BOX_SHARE
        rows.append(("bounding_box_test", pid, camid, STRANGERS + i, 0, whole))
    frames = np.cumsum(rng.integers(1, 12, len(rows)))
    return tuple(
        PlannedImage(folder, pid, camid, int(frame), person, shot, whole)
        for (folder, pid, camid, person, shot, whole), frame in zip(rows, frames, strict=True)
    )


def _pose(camera: Camera, track: np.random.Generator, rng: np.random.Generator, is_whole: bool) -> Pose:
    """Draw how a picture shows a person: the pass decides the direction, the picture the step and the detector's error."""
    heading = int(track.integers(len(camera.views)))
    stride, turned = float(track.uniform(0.2, 0.5)), float(track.normal(0, VIEW_SPREAD / 2))
    if rng.random() < OTHER_VIEW_SHARE:
        heading += 1
    height = CANVAS[0] * camera.scale * math.exp(rng.normal(0, BOX_SCALE))
    x = CANVAS[1] / 2 + rng.normal(0, BOX_SHIFT) * CANVAS[1]
    y = CANVAS[0] * (1 + camera.scale) / 2 + rng.normal(0, BOX_SHIFT) * CANVAS[0]
    if not is_whole:
        height *= rng.uniform(1.3, 2.2)
        x, y = x + rng.choice((-1, 1)) * CANVAS[1] * rng.uniform(0.2, 0.5), rng.uniform(0.7, 2.0) * CANVAS[0]
    return Pose(
        view=(camera.views[heading % len(camera.views)] + turned + rng.normal(0, VIEW_SPREAD)) % 360,
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=stride,
        elevation=camera.elevation,
        x=float(x),
        y=float(y),
        height=float(height),
    )


def _paste(scene: Floats, person: Person, pose: Pose, light: float, rng: np.random.Generator) -> None:
    """Draw a person and the shadow at the feet into the scene."""
    rows, columns = scene.shape[:2]
    foot = np.clip(int(pose.y), 0, rows)
    half = int(0.16 * pose.height)
    left = int(pose.x - half - 0.1 * light * pose.height)
    scene[max(0, foot - 8) : foot + 4, max(0, left) : max(0, left + 2 * half)] *= 0.72
    folds = 1 + smooth_noise(rng, (rows, columns), 8, 0.10)
    colours, mask = draw_person(person, pose, (rows, columns), light, folds)
    scene[mask] = colours


def _companion(scene: Floats, domain: Domain, seed: int, camera: Camera, rng: np.random.Generator) -> None:
    """Draw another pedestrian at the edge of the box."""
    pose = _pose(camera, rng, rng, is_whole=True)
    aside = float(rng.choice((-1, 1)) * rng.uniform(0.42, 0.62)) * CANVAS[1]
    other = make_person(domain, seed, 2 * STRANGERS + int(rng.integers(10_000)))
    _paste(scene, other, replace(pose, x=pose.x + aside), camera.light, rng)


def draw_image(domain: Domain, seed: int, planned: PlannedImage) -> npt.NDArray[np.uint8]:
    """Draw one planned picture.

    Background, perhaps a companion, the person, perhaps a thing in front, then the camera. One (person, camera) shares a pass:
    direction, place and light; the pictures of a pass differ in step, box and noise.

    Args:
        domain: which one.
        seed: of the data set.
        planned: which picture.

    Returns:
        (128, 64, 3), uint8, RGB.

    Raises:
        UserError: the camera number is below 1.

    Source: ours.

    >>> draw_image("source", 10, plan_domain("source", 10)[0]).shape
    (128, 64, 3)
    """
    camera, code = make_camera(domain, seed, planned.camid), CODES[domain]
    track = _rng(seed, code, TRACK, planned.person, planned.camid)
    rng = _rng(seed, code, SHOT, planned.person, planned.camid, planned.shot)
    left = float(np.clip(track.uniform(0.1, 0.9) + rng.normal(0, 0.06), 0, 1))
    gain = math.exp(track.normal(0, GAIN_SHOT) + rng.normal(0, GAIN_SHOT / 2))
    scene = background(camera, left, rng, CANVAS)
    pose = _pose(camera, track, rng, planned.is_whole)
    has_companion = rng.random() < COMPANION_SHARE[domain]
    is_before = rng.random() < 0.4
    if has_companion and not is_before:
        _companion(scene, domain, seed, camera, rng)
    if planned.is_whole or rng.random() < 0.6:
        _paste(scene, make_person(domain, seed, planned.person), pose, camera.light, rng)
    if has_companion and is_before:
        _companion(scene, domain, seed, camera, rng)
    if rng.random() < OCCLUSION_SHARE[domain]:
        kinds: tuple[Occluder, ...] = get_args(Occluder)
        draw_occluder(kinds[int(rng.integers(len(kinds)))], rng, scene)
    return expose(camera, scene, gain, rng)
