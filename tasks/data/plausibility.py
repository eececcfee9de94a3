"""Rules that tell what is probably no crop of a person (whole frames, other classes) and what is probably no camera (tracks, identities).

They read sizes, paths and camera numbers only. Sets with a fixed shape of images (128 x 64) and few cameras fulfil none of them.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FRAME_AREA = 8  # times the area of a median upright crop: people near the camera are larger than others, but rarely wider than high too
ODD_SHARE = 0.05  # of the images: detectors cut off a few people at the image border, and find a few that sit or lie down
MAX_SLENDERNESS = 6  # height / width of a standing person's box is 2 to 4
# Sizes of video and photographs that no detector's box has by chance, longer side first.
FRAME_SIZES = (
    *((320, 240), (352, 288), (640, 360), (640, 480), (704, 576), (720, 480), (720, 576), (800, 600), (1024, 768), (1280, 720)),
    *((1280, 960), (1280, 1024), (1600, 1200), (1920, 1080), (2048, 1536), (2560, 1440), (2560, 1920), (2592, 1944), (3840, 2160)),
)
UPRIGHT_FRAME_WIDTH = 720  # pixels: of a phone held upright; smaller upright images of a frame's size may be resized crops
MIN_CAMERAS = 10  # fewer cameras are plausible whatever their number of images is
TRACKS_PER_IMAGE = 2  # cameras for each image of a median camera, at least, if they are tracks: few images of many cameras are a sample
MIN_IDENTITIES = 3  # fewer may be on a camera each by chance
MIN_LONE_IMAGES = 5  # fewer images on a camera each may be a small sample

# Classes of COCO and of data sets of traffic, as detectors name their folders. COCO's train is left out: it is also the name of a split.
ONE_WORD = (
    "bicycle|bike|car|motorcycle|motorbike|motor|airplane|aeroplane|bus|truck|van|boat|tricycle|tram|vehicle|bench|bird|cat|dog|horse|sheep|"
    "cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|kite|skateboard|surfboard|bottle|cup|"
    "fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|pizza|donut|cake|chair|couch|sofa|bed|toilet|tv|laptop|mouse|remote|"
    "keyboard|microwave|oven|toaster|sink|refrigerator|book|clock|vase|scissors|toothbrush|face|head|helmet|animal|luggage"
)
TWO_WORDS = (
    "awning tricycle|licen[cs]e plate|number plate|traffic light|traffic sign|fire hydrant|stop sign|parking meter|sports ball|"
    "baseball bat|baseball glove|tennis racket|wine glass|hot dog|potted ?plant|dining ?table|tv ?monitor|cell phone|teddy bear|hair drier"
).replace(" ", "[ _-]")
PERSON = "person|people|pedestrian|human"
# A class beyond doubt: a folder with a name of two words, a folder in YOLO's folder crops, or a file name of a class and a number.
SURE_CLASS = rf"(?i)(^|/)(({TWO_WORDS})s?/|crops/({ONE_WORD})s?/|({ONE_WORD}|{TWO_WORDS})s?[ _-]?[0-9][0-9 _-]*\.[a-z]+$)"
CLASS_FOLDER = rf"(?i)^(?P<parents>(?:.*/)?)(?P<name>{ONE_WORD}|{PERSON})s?/"


def find_whole_frames(width: npt.NDArray[np.int64], height: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which images are probably whole frames: they have the size of a video, or are wider than high and much larger than the crops.

    Args:
        width: (n,) pixels.
        height: (n,) pixels.

    Example:
        >>> find_whole_frames(np.array([64, 60, 70, 480, 1080]), np.array([128, 130, 140, 270, 1920])).tolist()
        [False, False, False, True, True]
    """
    area, is_wide = width * height, width > height
    median_area = np.median(area[~is_wide]) if (~is_wide).any() else np.inf
    has_frame_size = np.zeros(len(width), bool)
    for long, short in FRAME_SIZES:
        has_frame_size |= (width == long) & (height == short)
        has_frame_size |= (width == short) & (height == long) & (short >= UPRIGHT_FRAME_WIDTH)
    return has_frame_size | (is_wide & (area >= FRAME_AREA * median_area))


def find_odd_shapes(width: npt.NDArray[np.int64], height: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which images are wider than high, or much higher than a standing person's box.

    Args:
        width: (n,) pixels.
        height: (n,) pixels.

    Example:
        >>> find_odd_shapes(np.array([64, 96, 10, 64]), np.array([128, 48, 100, 64])).tolist()
        [False, True, True, False]
    """
    odd: npt.NDArray[np.bool_] = (width > height) | (height > MAX_SLENDERNESS * width)
    return odd


def find_other_classes(paths: pa.ChunkedArray, cameras: Collection[str] = ()) -> npt.NDArray[np.bool_]:
    """Return which images a detector probably filed under a class other than person: by a folder's name, or the file's.

    A camera or a person may be called Bus or Bear, too. A folder with such a name is a class if it is beside a folder of people, or beside
    another class where the names are not those of cameras.

    Args:
        paths: (n,) relative paths with forward slashes.
        cameras: names of cameras.

    Example:
        >>> find_other_classes(pa.chunked_array([["person/1.jpg", "car/1.jpg", "Dog 12.png", "train/carl/7.jpg"]])).tolist()
        [False, True, True, False]
        >>> find_other_classes(pa.chunked_array([["Ana/1.jpg", "Bear/1.jpg"]])).tolist()
        [False, False]
    """
    is_other = np.array(pc.match_substring_regex(paths, SURE_CLASS))
    folders = pc.extract_regex(paths, CLASS_FOLDER)
    names = pc.utf8_lower(pc.struct_field(folders, "name"))
    depths = pc.count_substring(pc.struct_field(folders, "parents"), "/")
    for depth in pc.unique(depths).drop_null():
        is_at_depth = pc.equal(depths, depth)
        classes = set(pc.unique(names.filter(is_at_depth)).to_pylist())
        if classes.isdisjoint(PERSON.split("|")):
            classes -= {camera.lower().removesuffix("s") for camera in cameras}
            classes = classes if len(classes) > 1 else set()
        others = pa.array(sorted(classes.difference(PERSON.split("|"))), pa.string())
        is_other |= np.asarray(pc.fill_null(pc.and_(is_at_depth, pc.is_in(names, others)), False))
    return is_other


def are_lone_images(num_images: int, num_cameras: int) -> bool:
    """Return whether every image is alone on its camera, so that the cameras are probably file names or times.

    Args:
        num_images: number of images whose camera is known.
        num_cameras: number of cameras that have images.

    Example:
        >>> are_lone_images(32, 32), are_lone_images(32, 31), are_lone_images(2, 2)
        (True, False, False)
    """
    return num_images == num_cameras >= MIN_LONE_IMAGES


def are_tracks(camera_sizes: npt.NDArray[np.int64]) -> bool:
    """Return whether there are so many cameras with so few images each that they are probably tracks, persons or days.

    Args:
        camera_sizes: (c,) number of images on each camera, at least 1.

    Example:
        >>> [are_tracks(np.full(cameras, images)) for cameras, images in ((300, 40), (20, 2500), (15, 12), (2, 1))]
        [True, False, False, False]
    """
    return len(camera_sizes) > MIN_CAMERAS and bool(len(camera_sizes) >= TRACKS_PER_IMAGE * np.median(camera_sizes))


def are_identities(pids: npt.NDArray[np.int64], camids: npt.NDArray[np.int64]) -> bool:
    """Return whether each camera shows one person, so that the cameras are probably the identities or their tracks.

    Args:
        pids: (n,) identities.
        camids: (n,) known cameras.

    Example:
        >>> are_identities(np.array([1, 1, 2, 3]), np.array([7, 7, 8, 9])), are_identities(np.array([1, 2, 2, 3]), np.array([7, 7, 8, 9]))
        (True, False)
    """
    num_cameras = len(np.unique(camids))
    return len(np.unique(pids)) >= MIN_IDENTITIES and len(np.unique(np.stack((pids, camids)), axis=1).T) == num_cameras
