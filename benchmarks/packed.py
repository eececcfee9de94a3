"""Packed data sets: one file with the JPEG bytes, identities, cameras and splits of all images, which numpy reads without pickle."""

import functools
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn

from pul_core.arrays import Images, Ints
from pul_core.errors import UserError
from pul_core.learning.backbone import architecture, build_backbone
from pul_core.learning.foreign_weights import load_foreign_state
from pul_core.seeds import derive_seed
from pul_core.settings import Model
from pul_core.synthetic.people import PlannedImage, draw_image, plan_domain

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}  # of Market-1501, in the order of the rows
FILE_NAME = re.compile(r"(-?\d+)_c(\d+).*\.(jpg|jpeg|png)", re.IGNORECASE)
REFERENCE = re.compile(r"(.+?)(?:\[(\d*):(\d*)\])?")  # the name of a set, and a range of its training identities
SYNTHETIC = re.compile(r"synthetic:(\d+)/(source|target)")


@dataclass(frozen=True)
class PackedSet:
    """A data set of n images in the order of split and file name; the arrays are those of the file."""

    name: str
    jpeg: np.ndarray  # uint8, the bytes of all images, one after the other
    ends: Ints  # (n,) position in `jpeg` where each image ends
    pids: Ints  # (n,) 0 is a distractor, -1 is junk
    camids: Ints  # (n,)
    splits: np.ndarray  # (n,) train, query or gallery

    @functools.cached_property
    def digest(self) -> str:
        """A digest of everything but the name."""
        parts = (self.jpeg.tobytes(), self.ends.tobytes(), self.pids.tobytes(), self.camids.tobytes(), "".join(self.splits).encode())
        return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


class Split(NamedTuple):
    """The decoded images of a split."""

    pixels: Images  # (n, height, width, 3)
    pids: Ints
    camids: Ints


class ListedImage(NamedTuple):
    """An image of a source, and how to get it."""

    split: str
    file_name: str
    load: Callable[[], Image.Image]


def list_images(source: str) -> list[ListedImage]:
    """List the images of a folder in the layout of Market-1501, or of synthetic people (``synthetic:SEED/source`` or ``/target``)."""
    if match := SYNTHETIC.fullmatch(source):
        seed, domain = int(match[1]), match[2]
        splits = {folder: split for split, folder in FOLDERS.items()}
        images = [ListedImage(splits[p.folder], p.file_name, functools.partial(_draw, domain, seed, p)) for p in plan_domain(domain, seed)]
    else:
        files = [(split, file) for split, folder in FOLDERS.items() for file in Path(source, folder).glob("[!.]*")]
        images = [ListedImage(s, f.name, functools.partial(_open, f)) for s, f in files if FILE_NAME.fullmatch(f.name)]
    if not images:
        raise UserError(f"{source} has no images: give a folder in the layout of Market-1501, or synthetic:SEED/source or /target")
    return sorted(images, key=lambda image: (list(FOLDERS).index(image.split), image.file_name))


def _draw(domain: str, seed: int, planned: PlannedImage) -> Image.Image:
    return Image.fromarray(draw_image(domain, seed, planned))


def _open(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def compress(image: Image.Image, height: int, quality: int) -> bytes:
    """Compress an image to JPEG; a higher one is scaled down first. Images of at most this height have the pixels of `pul_by_hand.py`."""
    if image.height > height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    image.save(file := io.BytesIO(), format="JPEG", quality=quality)
    return file.getvalue()


def pack(name: str, source: str, file: Path, *, height: int = 160, quality: int = 90, hold_out: int = 0) -> PackedSet:
    """Pack a data set into one file.

    Args:
        name: what a queue calls the set.
        source: as for `list_images`.
        file: of the packed set, replaced if it exists.
        height: images that are higher are scaled down to it, in pixels.
        quality: of the JPEG.
        hold_out: for a set that has neither queries nor a gallery: the number of its last identities that are scored instead of trained
            on. Their images on the lowest camera become queries, the others the gallery.
    """
    images = list_images(source)
    pids, camids = np.array([FILE_NAME.fullmatch(image.file_name).groups()[:2] for image in images], np.int64).T
    splits = np.array([image.split for image in images], "<U7")  # long enough for those that _hold_out writes
    if hold_out:
        splits = _hold_out(splits, pids, camids, hold_out)
    order = np.concatenate([np.flatnonzero(splits == split) for split in FOLDERS])
    parts = [compress(images[i].load(), height, quality) for i in order]
    jpeg = np.frombuffer(b"".join(parts), np.uint8)
    packed = PackedSet(name, jpeg, np.cumsum([len(part) for part in parts]), pids[order], camids[order], splits[order])
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("wb") as output:
        np.savez_compressed(output, **asdict(packed))  # JPEG files have their headers in common
    unfinished.replace(file)
    return packed


def _hold_out(splits: np.ndarray, pids: Ints, camids: Ints, number: int) -> np.ndarray:
    if set(splits) != {"train"}:
        raise UserError("the set has queries and a gallery already: leave --hold-out away")
    splits = splits.copy()
    for pid in np.unique(pids[pids > 0])[-number:]:
        rows = np.flatnonzero(pids == pid)
        splits[rows] = np.where(camids[rows] == camids[rows].min(), "query", "gallery")
    return splits


def read_packed(file: Path) -> PackedSet:
    """Read a packed set."""
    with np.load(file, allow_pickle=False) as arrays:
        return PackedSet(**{name: str(arrays[name]) if name == "name" else arrays[name] for name in arrays.files})


def read_name(file: Path) -> str:
    """Return the name of a packed set without reading its images."""
    with np.load(file, allow_pickle=False) as arrays:
        return str(arrays["name"])


def decode(packed: PackedSet, split: str, height: int, width: int, people: slice = slice(None)) -> Split:
    """Decode and resize the images of a split, as `pul_by_hand.py` does.

    Args:
        packed: the set.
        split: train, query or gallery.
        height: of the decoded images, in pixels.
        width: of the decoded images, in pixels.
        people: the identities to keep, of all identities of the split in ascending order; by default, all images are kept.
    """
    rows = np.flatnonzero(packed.splits == split)
    if people != slice(None):
        pids = np.unique(packed.pids[rows])
        rows = rows[np.isin(packed.pids[rows], pids[pids > 0][people])]
    if len(rows) == 0:
        raise UserError(f"{packed.name} has no {split} images: give another set, or pack it with --hold-out")
    starts = np.append(0, packed.ends)
    pixels = np.empty((len(rows), height, width, 3), np.uint8)
    for i, row in enumerate(rows):
        with Image.open(io.BytesIO(packed.jpeg[starts[row] : packed.ends[row]].tobytes())) as image:
            pixels[i] = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return Split(pixels, packed.pids[rows], packed.camids[rows])


class Sets:
    """The packed sets in a folder, by name, and files of weights. Drawn people that are missing are drawn."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.folder, self.size = folder, size
        self.files = {read_name(file): file for file in folder.glob("*.npz")}
        self.read = functools.lru_cache(maxsize=16)(self._read)  # packed sets
        self.split = functools.lru_cache(maxsize=6)(self._split)  # decoded images

    def _read(self, name: str) -> PackedSet:
        if name not in self.files and SYNTHETIC.fullmatch(name):
            print(f"drawing {name}", flush=True)
            file = self.folder / f"{re.sub('[:/]', '-', name)}.npz"
            pack(name, name, file)
            self.files[name] = file
        if name not in self.files:
            raise UserError(f"{self.folder} has no set {name!r}: pack it first; it has {', '.join(sorted(self.files)) or 'none'}")
        return read_packed(self.files[name])

    def _split(self, reference: str, split: str) -> Split:
        name, start, stop = REFERENCE.fullmatch(reference).groups()
        people = slice(*(int(number) if number else None for number in (start, stop)))
        return decode(self.read(name), split, *self.size, people if split == "train" else slice(None))

    def digest(self, reference: str) -> str:
        """Return the digest of a set's images and labels."""
        return self.read(REFERENCE.fullmatch(reference)[1]).digest

    def weights_digest(self, weights: str) -> str:
        """Return the digest of a file of weights, or the name of weights that are not in a file."""
        return weights if weights in ("imagenet", "random") else hashlib.blake2b((self.folder / weights).read_bytes()).hexdigest()

    def initial_model(self, settings: Model, seed: int) -> nn.Module:
        """Build the model that source training starts from."""
        weights = settings.weights
        is_file = weights not in ("imagenet", "random")
        model = build_backbone(**architecture(settings), pretrained=weights == "imagenet", seed=derive_seed(seed, "initial"))
        if is_file:
            file = self.folder / weights
            load_foreign_state(model, load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True))
        return model
