"""Synthetic pedestrians in two domains: identities, cameras, the list of images, and the drawing of one image from its seed.

The data sets resemble a small Market-1501 and a second small set: people with similar clothes, cameras with different colours,
misaligned boxes, and distractors and junk in the gallery. The whole loop can be run, tested and demonstrated on them without a real data
set, but they do not predict accuracy on real data. Everything follows from (seed, domain, number), so no image depends on the number of
other images.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from numpy.random import default_rng

from pul_core.errors import UserError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID
from pul_core.synthetic.camera import Camera, FloatImage, Ground, Occluder, Wall, capture, crop_backdrop, draw_occluder, smooth_noise
from pul_core.synthetic.figure import Bag, Bottom, Colour, Hairstyle, Hat, Pattern, Person, Pose, Top, draw_person

GENERATOR_VERSION = 2  # increment whenever a seed would give different images

# --- Difficulty: the only tunable numbers. They were tuned on seeds 10, 11 and 12; seeds 0, 1 and 2 are reserved for reported results. ---
LOOKALIKE_SHARE = 0.55  # share of people in one of the domain's common outfits, distinguishable by small details only
COMMON_OUTFITS = 40  # number of common outfits in a domain
SHADE_SPREAD = 0.14  # standard deviation (log) of the brightness within one named colour
DOMAIN_CAST_SPREAD = 0.12  # standard deviation (log gain per channel) of the colour cast between the domains
ZONE_CAST_SPREAD = 0.08  # the same between zones: pairs of cameras (1-2, 3-4, 5-6) with similar colours
CAMERA_CAST_SPREAD = 0.03  # the same between the cameras of one zone
CAMERA_GAIN_SPREAD = 0.16  # standard deviation (log) of the cameras' brightness (gamma)
SHOT_GAIN_SPREAD = 0.07  # standard deviation (log) of the brightness between images of one camera
BLUR = {"source": (0.0, 0.5), "target": (0.2, 0.9)}  # range of the blur radius, pixels
RESOLUTION = {"source": (0.7, 1.0), "target": (0.5, 0.9)}  # range of the sensor resolution, as a fraction of the image size
NOISE = {"source": (0.005, 0.02), "target": (0.01, 0.035)}  # range of the noise's standard deviation
ELEVATION = {"source": (0.02, 0.12), "target": (0.10, 0.24)}  # range of how steeply the cameras look down
BOX_SHIFT = 0.035  # detector: standard deviation of the shift, in box widths and heights
BOX_SCALE = 0.05  # detector: standard deviation (log) of the box size
OCCLUSION_SHARE = {"source": 0.08, "target": 0.12}  # share of images with an object in front of the person
COMPANION_SHARE = {"source": 0.06, "target": 0.10}  # share of images with a second pedestrian beside or in front of the person
VIEW_SPREAD = 14.0  # standard deviation of the viewing angle within one track, degrees
OTHER_VIEW_SHARE = 0.25  # share of images with the camera's other viewing angle: the person turns around or comes back
CAMERAS_PER_IDENTITY = {2: 0.06, 3: 0.15, 4: 0.29, 5: 0.32, 6: 0.18}  # number of cameras -> share of identities; mean 4.41
IMAGES_PER_IDENTITY_SHAPE = 2.0  # shape of the gamma distribution of images per identity; smaller is more skewed
FALSE_BOX_SHARE = 0.4  # share of distractors that are bad boxes; all junk images are
# ------------------------------------------------------------------------------------------------------------------------------------------

Key = TypeVar("Key")
Domain = Literal["source", "target"]
Folder = Literal["bounding_box_train", "query", "bounding_box_test"]
DOMAIN_CODES: dict[str, int] = {"source": 1, "target": 2}
PERSON, CAMERA, PLAN, TRACK, SHOT, OUTFIT, ZONE = range(7)  # purposes of the random streams
FIRST_PID = {"source": 1, "target": 5001}  # the domains' identities are disjoint and have at most four digits
FIRST_STRANGER = 100_000  # person numbers from here on appear only as distractors, junk and companions
CANVAS = (256, 128)  # rows and columns of the canvas; the final image is half as large

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
    """The frequency of clothes, colours and accessories in a domain: name -> weight."""

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
WARDROBES: dict[str, Wardrobe] = {
    "source": Wardrobe(  # a sunny campus in summer
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
    ),
    "target": Wardrobe(  # a city in October
        tops={"tshirt": 1.5, "shirt": 2.5, "jacket": 4, "coat": 1.8, "dress": 0.4},
        bottoms={"trousers": 7, "shorts": 0.7, "skirt": 1},
        top_colours={
            "black": 4, "charcoal": 1.8, "grey": 1.5, "navy": 2, "beige": 1.2, "brown": 1, "olive": 1.2, "white": 1.2, "blue": 1,
            "red": 0.9, "wine": 0.8, "green": 0.5, "orange": 0.4, "teal": 0.4, "purple": 0.3, "silver": 0.6,
        },
        bottom_colours={"black": 3.5, "indigo": 2.5, "denim": 2.5, "charcoal": 1.2, "beige": 0.9, "brown": 0.6, "olive": 0.5, "grey": 0.7},
        patterns={"plain": 6, "stripes": 0.8, "pinstripes": 0.4, "checks": 1.2, "dots": 0.2, "logo": 1.2, "two_tone": 1.2},
        bags={"none": 3.5, "backpack": 2.5, "shoulder": 2, "handbag": 2},
        hats={"none": 7, "cap": 0.8, "beanie": 1.5},
        scarf=0.18,
        boots=0.25,
    ),
}
HAIRSTYLES: dict[Hairstyle, float] = {"short": 5, "bald": 0.6, "bob": 1.5, "long": 2, "ponytail": 1.3, "bun": 0.7}
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
    """The size of a domain. Query images are not part of the gallery; distractors and junk are shares of the gallery's images."""

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
    """One image to draw, and its position in the layout of Market-1501."""

    folder: Folder
    pid: int  # as in the file name: 0 for a distractor, -1 for junk
    camid: int
    frame: int
    person: int  # number of the person drawn: the pid, or a number from FIRST_STRANGER on
    shot: int  # number of the image within the track of this person on this camera
    is_good_box: bool = True  # False for a bad detection: part of a person, or none

    @property
    def file_name(self) -> str:
        """The file name in the pattern of Market-1501."""
        pid = "-1" if self.pid == JUNK_PID else f"{self.pid:04d}"
        return f"{pid}_c{self.camid}s1_{self.frame:06d}_00.jpg"


def _sample_key(rng: np.random.Generator, weights: dict[Key, float]) -> Key:
    """Return a random key, with a probability proportional to its weight."""
    edges = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def _sample_colour(rng: np.random.Generator, weights: dict[str, float]) -> Colour:
    """Sample a named colour, with a slight random change of its brightness and hue."""
    base = np.array(PALETTE[_sample_key(rng, weights)]) / 255
    r, g, b = np.clip(base * math.exp(rng.normal(0, SHADE_SPREAD)) * np.exp(rng.normal(0, 0.04, 3)), 0.02, 0.97).tolist()
    return r, g, b


def _sample_outfit(domain: Domain, rng: np.random.Generator) -> dict[str, object]:
    """Sample the main garments and their colours."""
    wardrobe = WARDROBES[domain]
    top = _sample_key(rng, wardrobe.tops)
    hem_range = {"tshirt": (0.44, 0.48), "shirt": (0.43, 0.48), "jacket": (0.41, 0.47), "coat": (0.26, 0.36), "dress": (0.24, 0.36)}[top]
    return {
        "top": top,
        "top_colour": _sample_colour(rng, wardrobe.top_colours),
        "top_hem": float(rng.uniform(*hem_range)),
        "bottom": _sample_key(rng, wardrobe.bottoms) if top != "dress" else "skirt",
        "bottom_colour": _sample_colour(rng, wardrobe.bottom_colours),
        "is_open": top in ("jacket", "coat") and rng.random() < 0.6,
    }


@lru_cache(maxsize=4096)
def make_person(domain: Domain, seed: int, number: int) -> Person:
    """Return the appearance of one person.

    With probability `LOOKALIKE_SHARE` the garments and their colours are one of the domain's common outfits, otherwise they are sampled
    for this person. The details (pattern, bag, shoes, hair, proportions, inner garment) are always sampled for this person.

    Args:
        domain: the domain, which selects the wardrobe.
        seed: seed of the data set.
        number: number of the person; not negative.

    Returns:
        The person; equal arguments give an equal person.

    Example:
        >>> make_person("source", 10, 1) == make_person("source", 10, 1) != make_person("target", 10, 1)
        True
    """
    rng, wardrobe = default_rng((seed, DOMAIN_CODES[domain], PERSON, number)), WARDROBES[domain]
    outfit = _sample_outfit(domain, rng)
    common_outfit = int(rng.integers(COMMON_OUTFITS))
    if rng.random() < LOOKALIKE_SHARE:
        outfit = _sample_outfit(domain, default_rng((seed, DOMAIN_CODES[domain], OUTFIT, common_outfit)))
    pattern = _sample_key(rng, wardrobe.patterns)
    period_ranges = {"stripes": (0.035, 0.08), "pinstripes": (0.025, 0.05), "checks": (0.04, 0.08), "dots": (0.03, 0.05)}
    return Person(
        **outfit,  # type: ignore[arg-type]  # _sample_outfit returns exactly these fields
        build=float(np.clip(rng.normal(1, 0.11), 0.78, 1.35)),
        leg_length=float(np.clip(rng.normal(1, 0.035), 0.92, 1.08)),
        head_size=float(np.clip(rng.normal(1, 0.06), 0.88, 1.15)),
        skin_colour=SKINS[int(rng.choice(len(SKINS), p=(0.3, 0.3, 0.2, 0.1, 0.1)))],
        hairstyle=_sample_key(rng, HAIRSTYLES),
        hair_colour=_sample_colour(rng, HAIR_COLOURS),
        hat=_sample_key(rng, wardrobe.hats),
        hat_colour=_sample_colour(rng, wardrobe.top_colours),
        pattern_colour=_sample_colour(rng, wardrobe.top_colours),
        inner_colour=_sample_colour(rng, wardrobe.top_colours),
        pattern=pattern,
        pattern_period=float(rng.uniform(*period_ranges.get(pattern, (0.05, 0.09)))),
        bottom_hem=float(rng.uniform(0.2, 0.36)),
        trouser_half_width=float(rng.uniform(0.027, 0.046)),
        has_side_stripe=bool(rng.random() < 0.08),
        shoe_colour=_sample_colour(rng, SHOE_COLOURS),
        boot_height=float(rng.uniform(0.07, 0.18)) if rng.random() < wardrobe.boots else 0.0,
        bag=_sample_key(rng, wardrobe.bags),
        bag_colour=_sample_colour(rng, BAG_COLOURS),
        bag_size=float(rng.uniform(0.8, 1.2)),
        bag_side=int(rng.choice((-1, 1))),
        has_scarf=bool(rng.random() < wardrobe.scarf),
        scarf_colour=_sample_colour(rng, wardrobe.top_colours),
    )


@lru_cache(maxsize=64)
def make_camera(domain: Domain, seed: int, camid: int) -> Camera:
    """Return one camera of a domain.

    Its log gains are the sum of random deviations of the domain, of its zone (a pair of cameras) and of the camera itself, so the cameras
    of one zone have similar colours.

    Args:
        domain: the domain.
        seed: seed of the data set.
        camid: number of the camera, from 1.

    Returns:
        The camera; equal arguments give an equal camera.

    Example:
        >>> make_camera("source", 10, 1).backdrop_seed != make_camera("source", 10, 2).backdrop_seed
        True
    """
    code, zone = DOMAIN_CODES[domain], (camid - 1) // 2
    domain_rng, zone_rng, rng = (
        default_rng((seed, code, ZONE)),
        default_rng((seed, code, ZONE, 1 + zone)),
        default_rng((seed, code, CAMERA, camid)),
    )
    gains = np.exp(
        domain_rng.normal(0, DOMAIN_CAST_SPREAD, 3) + zone_rng.normal(0, ZONE_CAST_SPREAD, 3) + rng.normal(0, CAMERA_CAST_SPREAD, 3)
    )
    desaturation = float(np.clip(zone_rng.normal(0.12, 0.08) + rng.normal(0, 0.03), 0, 0.4))  # 0 keeps the colours, 1 is grey
    matrix = gains[:, None] * ((1 - desaturation) * np.eye(3) + desaturation / 3)
    gamma = math.exp(zone_rng.normal(0, CAMERA_GAIN_SPREAD) + rng.normal(0, 0.5 * CAMERA_GAIN_SPREAD))
    views = VIEWS[int(zone_rng.integers(len(VIEWS)))]
    turn = float(rng.normal(0, 10))
    return Camera(
        backdrop_seed=int(rng.integers(2**31)),
        ground=GROUNDS[domain][int(rng.integers(len(GROUNDS[domain])))],
        wall=WALLS[domain][int(rng.integers(len(WALLS[domain])))],
        horizon=float(rng.uniform(0.25, 0.6)),
        light=float(rng.uniform(-0.8, 0.8)),
        colour_matrix=tuple(tuple(row) for row in matrix.tolist()),
        gamma=gamma,
        contrast=float(np.clip(zone_rng.normal(1, 0.08) + rng.normal(0, 0.04), 0.75, 1.25)),
        haze=float(zone_rng.uniform(0, 0.05)),
        blur=float(rng.uniform(*BLUR[domain])),
        resolution=float(rng.uniform(*RESOLUTION[domain])),
        noise=float(rng.uniform(*NOISE[domain])),
        views=tuple((view + turn) % 360 for view in views),
        elevation=float(rng.uniform(*ELEVATION[domain])),
        scale=float(rng.uniform(0.84, 0.92)),
    )


def _sample_tracks(rng: np.random.Generator, pids: range, cameras: int, images: int) -> list[tuple[int, int]]:
    """Sample the (pid, camid) pairs that have images: at least two cameras per identity, and no more pairs than images."""
    limit = min(cameras, images // len(pids))
    shares = {count: share for count, share in CAMERAS_PER_IDENTITY.items() if count <= limit} or {limit: 1.0}
    return [(pid, int(camera) + 1) for pid in pids for camera in sorted(rng.permutation(cameras)[: _sample_key(rng, shares)])]


def _sample_track_sizes(rng: np.random.Generator, tracks: list[tuple[int, int]], images: int) -> list[int]:
    """Sample the number of images of each track: at least one, skewed over identities, `images` in total."""
    identity_weights = {pid: rng.gamma(IMAGES_PER_IDENTITY_SHAPE) for pid, _ in tracks}
    weights = np.array([identity_weights[pid] for pid, _ in tracks]) * rng.gamma(3.0, size=len(tracks))
    return list(1 + rng.multinomial(images - len(tracks), weights / weights.sum()))


def _sample_query_tracks(rng: np.random.Generator, tracks: list[tuple[int, int]], queries: int) -> set[tuple[int, int]]:
    """Sample the tracks that have a query image, at most one each: every identity gets a first query before any gets a second."""
    shuffled = [tracks[i] for i in rng.permutation(len(tracks))]
    first = {pid: (pid, camid) for pid, camid in reversed(shuffled)}
    rest = [track for track in shuffled if first[track[0]] != track]
    return set((list(first.values()) + rest)[:queries])


def _check_sizes(sizes: Sizes) -> None:
    """Raise a UserError if the sizes are inconsistent."""
    identities = sizes.train_identities + sizes.test_identities
    known = round(sizes.gallery_images * (1 - sizes.distractor_share - sizes.junk_share))
    requirements = {
        f"cameras must be between 2 and 9, got {sizes.cameras}.": 2 <= sizes.cameras <= 9,
        f"train_identities must be at least 1, got {sizes.train_identities}.": sizes.train_identities >= 1,
        f"test_identities must be at least 1, got {sizes.test_identities}.": sizes.test_identities >= 1,
        f"train_identities + test_identities must be at most 4,999, got {identities:,}.": identities <= 4999,
        f"train_images must be at least 2 per train identity ({2 * sizes.train_identities}), got {sizes.train_images}.": (
            sizes.train_images >= 2 * sizes.train_identities
        ),
        f"queries must be at least 1 per test identity ({sizes.test_identities}), got {sizes.queries}.": (
            sizes.queries >= sizes.test_identities
        ),
        f"gallery_images without distractors and junk must be at least 2 per test identity ({2 * sizes.test_identities}), got {known}.": (
            known >= 2 * sizes.test_identities
        ),
    }
    for message, is_met in requirements.items():
        if not is_met:
            raise UserError(message)


def plan_domain(domain: Domain, seed: int, sizes: Sizes | None = None) -> tuple[PlannedImage, ...]:
    """List every image of a domain.

    A query is one additional image of a track, an (identity, camera) pair, of the gallery. A track has at most one query and every test
    identity has at least one, so every query has a correct match on another camera. Distractors show strangers; junk images are bad boxes.

    Args:
        domain: the domain.
        seed: seed of the data set.
        sizes: the sizes; None for the domain's default.

    Returns:
        The images in the order of folder, identity and camera; file names are unique within a folder.

    Raises:
        UserError: the sizes are inconsistent.

    Source: the layout and the shares are Market-1501's; the rest is ours.

    Example:
        >>> plan = plan_domain("target", 10)
        >>> sum(image.folder == "query" for image in plan), sum(image.folder == "bounding_box_test" for image in plan)
        (350, 1300)
        >>> PlannedImage("query", pid=5001, camid=2, frame=17, person=5001, shot=0).file_name
        '5001_c2s1_000017_00.jpg'
    """
    sizes = sizes or SIZES[domain]
    _check_sizes(sizes)
    rng, first_pid = default_rng((seed, DOMAIN_CODES[domain], PLAN)), FIRST_PID[domain]
    train_pids = range(first_pid, first_pid + sizes.train_identities)
    test_pids = range(train_pids.stop, train_pids.stop + sizes.test_identities)
    rows: list[tuple[Folder, int, int, int, int, bool]] = []
    tracks = _sample_tracks(rng, train_pids, sizes.cameras, sizes.train_images)
    for (pid, camid), count in zip(tracks, _sample_track_sizes(rng, tracks, sizes.train_images), strict=True):
        rows += [("bounding_box_train", pid, camid, pid, shot, True) for shot in range(count)]
    distractors, junk = round(sizes.gallery_images * sizes.distractor_share), round(sizes.gallery_images * sizes.junk_share)
    known = sizes.gallery_images - distractors - junk
    tracks = _sample_tracks(rng, test_pids, sizes.cameras, known)
    counts = _sample_track_sizes(rng, tracks, known)
    if sizes.queries > len(tracks):
        raise UserError(f"queries must be at most the number of (test identity, camera) pairs ({len(tracks)}), got {sizes.queries}.")
    rows += [("query", pid, camid, pid, 0, True) for pid, camid in sorted(_sample_query_tracks(rng, tracks, sizes.queries))]
    for (pid, camid), count in zip(tracks, counts, strict=True):
        rows += [("bounding_box_test", pid, camid, pid, shot, True) for shot in range(1, 1 + count)]
    for i in range(distractors + junk):
        pid, camid = (DISTRACTOR_PID if i < distractors else JUNK_PID), int(rng.integers(sizes.cameras)) + 1
        is_good_box = pid == DISTRACTOR_PID and rng.random() >= FALSE_BOX_SHARE
        rows.append(("bounding_box_test", pid, camid, FIRST_STRANGER + i, 0, is_good_box))
    frames = np.cumsum(rng.integers(1, 12, len(rows)))
    return tuple(
        PlannedImage(folder, pid, camid, int(frame), person, shot, is_good_box)
        for (folder, pid, camid, person, shot, is_good_box), frame in zip(rows, frames, strict=True)
    )


def _sample_pose(camera: Camera, track_rng: np.random.Generator, rng: np.random.Generator, is_good_box: bool) -> Pose:
    """Sample a pose: the direction follows from the track, the gait phase and the detector's error from the image."""
    view_index = int(track_rng.integers(len(camera.views)))
    stride, turn = float(track_rng.uniform(0.2, 0.5)), float(track_rng.normal(0, VIEW_SPREAD / 2))
    if rng.random() < OTHER_VIEW_SHARE:
        view_index += 1
    height = CANVAS[0] * camera.scale * math.exp(rng.normal(0, BOX_SCALE))
    x = CANVAS[1] / 2 + rng.normal(0, BOX_SHIFT) * CANVAS[1]
    y = CANVAS[0] * (1 + camera.scale) / 2 + rng.normal(0, BOX_SHIFT) * CANVAS[0]
    if not is_good_box:
        height *= rng.uniform(1.3, 2.2)
        x, y = x + rng.choice((-1, 1)) * CANVAS[1] * rng.uniform(0.2, 0.5), rng.uniform(0.7, 2.0) * CANVAS[0]
    return Pose(
        view=(camera.views[view_index % len(camera.views)] + turn + rng.normal(0, VIEW_SPREAD)) % 360,
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=stride,
        elevation=camera.elevation,
        x=float(x),
        y=float(y),
        height=float(height),
    )


def _draw_person_and_shadow(scene: FloatImage, person: Person, pose: Pose, light: float, rng: np.random.Generator) -> None:
    """Draw a person and the shadow at the feet into the scene."""
    rows, columns = scene.shape[:2]
    foot_row = np.clip(int(pose.y), 0, rows)
    half = int(0.16 * pose.height)
    left = int(pose.x - half - 0.1 * light * pose.height)
    scene[max(0, foot_row - 8) : foot_row + 4, max(0, left) : max(0, left + 2 * half)] *= 0.72
    folds = 1 + smooth_noise(rng, (rows, columns), 8, 0.10)
    colours, mask = draw_person(person, pose, (rows, columns), light, folds)
    scene[mask] = colours


def _draw_companion(scene: FloatImage, domain: Domain, seed: int, camera: Camera, rng: np.random.Generator) -> None:
    """Draw a second pedestrian at the edge of the box."""
    pose = _sample_pose(camera, rng, rng, is_good_box=True)
    offset = float(rng.choice((-1, 1)) * rng.uniform(0.42, 0.62)) * CANVAS[1]
    companion = make_person(domain, seed, 2 * FIRST_STRANGER + int(rng.integers(10_000)))
    _draw_person_and_shadow(scene, companion, replace(pose, x=pose.x + offset), camera.light, rng)


def draw_image(domain: Domain, seed: int, planned: PlannedImage) -> npt.NDArray[np.uint8]:
    """Draw one planned image.

    The order is: background, a companion behind, the person, a companion in front, an occluder, then lens and sensor. The images of one
    track, a (person, camera) pair, share direction, position and light; they differ in gait phase, box and noise.

    Args:
        domain: the domain.
        seed: seed of the data set.
        planned: the image.

    Returns:
        (128, 64, 3), uint8, RGB.

    Example:
        >>> draw_image("source", 10, plan_domain("source", 10)[0]).shape
        (128, 64, 3)
    """
    camera, code = make_camera(domain, seed, planned.camid), DOMAIN_CODES[domain]
    track_rng = default_rng((seed, code, TRACK, planned.person, planned.camid))
    rng = default_rng((seed, code, SHOT, planned.person, planned.camid, planned.shot))
    position = float(np.clip(track_rng.uniform(0.1, 0.9) + rng.normal(0, 0.06), 0, 1))
    gain = math.exp(track_rng.normal(0, SHOT_GAIN_SPREAD) + rng.normal(0, SHOT_GAIN_SPREAD / 2))
    scene = crop_backdrop(camera, position, rng, CANVAS)
    pose = _sample_pose(camera, track_rng, rng, planned.is_good_box)
    has_companion = rng.random() < COMPANION_SHARE[domain]
    is_companion_in_front = rng.random() < 0.4
    if has_companion and not is_companion_in_front:
        _draw_companion(scene, domain, seed, camera, rng)
    if planned.is_good_box or rng.random() < 0.6:
        _draw_person_and_shadow(scene, make_person(domain, seed, planned.person), pose, camera.light, rng)
    if has_companion and is_companion_in_front:
        _draw_companion(scene, domain, seed, camera, rng)
    if rng.random() < OCCLUSION_SHARE[domain]:
        kinds: tuple[Occluder, ...] = get_args(Occluder)
        draw_occluder(kinds[int(rng.integers(len(kinds)))], rng, scene)
    return capture(camera, scene, gain, rng)
