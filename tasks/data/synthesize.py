"""Write synthetic pedestrians to disk in the layout of Market-1501: the side effects around `pul_core.synthetic.people`.

A domain's folder exists whole or not at all: it is written under a temporary name and renamed. `synthetic.json` in it says how it was
made; a folder made the same way is used again, any other folder in its place is left alone and refused.
"""

import itertools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import get_args

from PIL import Image

from pul_core.errors import UserError
from pul_core.synthetic.people import GENERATOR_VERSION, SIZES, Domain, Folder, PlannedImage, Sizes, draw_image, plan_domain

MARKER = "synthetic.json"  # in every whole folder
JPEG_QUALITY = 90
CHUNK = 64  # images a worker draws between two reports
IMAGES_A_PROCESS = 200  # fewer are not worth starting a process

Progress = Callable[[int, int], None]
Settings = dict[str, object]


def _settings(domain: Domain, seed: int, sizes: Sizes) -> Settings:
    """Return what decides a folder's bytes, as it stands in its marker."""
    return {
        "generator_version": GENERATOR_VERSION,
        "domain": domain,
        "seed": seed,
        "sizes": asdict(sizes),
        "jpeg_quality": JPEG_QUALITY,
    }


def _is_whole(folder: Path, settings: Settings, images: int) -> bool:
    """Tell whether the folder was made with these settings and still holds every image."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return bool(found == settings) and sum(1 for _ in folder.glob("*/*.jpg")) == images


def _write_chunk(folder: Path, domain: Domain, seed: int, chunk: tuple[PlannedImage, ...]) -> int:
    """Draw and write some images; runs in a worker. Returns how many."""
    for planned in chunk:
        path = folder / planned.folder / planned.name
        Image.fromarray(draw_image(domain, seed, planned)).save(path, format="JPEG", quality=JPEG_QUALITY)
    return len(chunk)


def _write_all(folder: Path, domain: Domain, seed: int, plan: tuple[PlannedImage, ...], processes: int) -> Iterator[int]:
    """Draw and write all images, here or in several processes; yield how many are done."""
    by_camera = sorted(plan, key=lambda planned: planned.camid)  # a worker then draws few cameras' places
    chunks = [tuple(by_camera[i : i + CHUNK]) for i in range(0, len(plan), CHUNK)]
    write = partial(_write_chunk, folder, domain, seed)
    if processes == 1:
        yield from itertools.accumulate(map(write, chunks))
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from itertools.accumulate(pool.map(write, chunks))


def synthesize_domain(
    root: Path,
    domain: Domain,
    *,
    seed: int,
    sizes: Sizes | None = None,
    processes: int | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Write one domain's images to `root`/`domain`.

    The same seed and sizes give the same bytes with any number of processes. A whole folder of the same settings is used again; of
    two equal calls at once the first wins. Processes are spawned, so a script that calls this needs `if __name__ == "__main__":`.

    Args:
        root: folder that gets the domain's folder; made when missing.
        domain: "source" or "target".
        seed: of the data set, from 0.
        sizes: how large; the domain's default when None.
        processes: how many draw at a time; None for one a usable core, fewer for few images.
        on_progress: called with (images done, images in all) after each chunk.

    Returns:
        `root`/`domain`, with bounding_box_train, query and bounding_box_test.

    Raises:
        FileExistsError: something else stands there: a folder made otherwise, or not whole.
        UserError: `processes` is below 1, or the sizes contradict each other.

    Source: ours; names and folders are Market-1501's.

    >>> import tempfile
    >>> small = Sizes(train_identities=2, train_images=4, test_identities=2, queries=2, gallery_images=8)
    >>> with tempfile.TemporaryDirectory() as root:
    ...     folder = synthesize_domain(Path(root), "target", seed=10, sizes=small)
    ...     sorted(path.name for path in folder.iterdir())
    ['bounding_box_test', 'bounding_box_train', 'query', 'synthetic.json']
    """
    if processes is not None and processes < 1:
        raise UserError(f"{processes} processes: give at least 1")
    sizes = sizes or SIZES[domain]
    plan, settings, final = plan_domain(domain, seed, sizes), _settings(domain, seed, sizes), root / domain
    if _is_whole(final, settings, len(plan)):
        return final
    if final.exists():
        raise FileExistsError(f"{final} holds something else than these images: move it away or choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = processes or min(cores, 1 + len(plan) // IMAGES_A_PROCESS)
    with tempfile.TemporaryDirectory(prefix=f".{domain}-", dir=root) as temporary:
        whole = Path(temporary) / domain  # a plain mkdir: the temporary folder itself is closed to other users
        for name in get_args(Folder):
            (whole / name).mkdir(parents=True)
        for done in _write_all(whole, domain, seed, plan, workers):
            if on_progress is not None:
                on_progress(done, len(plan))
        (whole / MARKER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        try:
            whole.rename(final)
        except OSError:
            if not _is_whole(final, settings, len(plan)):
                raise
    return final


def synthesize_pair(
    root: Path,
    *,
    seed: int,
    source_sizes: Sizes | None = None,
    target_sizes: Sizes | None = None,
    processes: int | None = None,
    on_progress: Progress | None = None,
) -> tuple[Path, Path]:
    """Write a source and a target domain of one seed to `root`.

    Args:
        root: folder that gets `source` and `target`; made when missing.
        seed: of the data set, from 0.
        source_sizes: how large the source is; its default when None.
        target_sizes: how large the target is; its default when None.
        processes: how many draw at a time; None for one a usable core.
        on_progress: called with (images done, images in all), both domains together.

    Returns:
        (`root`/source, `root`/target).

    Raises:
        FileExistsError: something else stands in one of the two places.
        UserError: `processes` is below 1, or the sizes contradict each other.

    Source: ours.

    >>> import tempfile
    >>> small = Sizes(train_identities=2, train_images=4, test_identities=2, queries=2, gallery_images=8)
    >>> with tempfile.TemporaryDirectory() as root:
    ...     [folder.name for folder in synthesize_pair(Path(root), seed=10, source_sizes=small, target_sizes=small)]
    ['source', 'target']
    """
    pair: tuple[tuple[Domain, Sizes], ...] = (
        ("source", source_sizes or SIZES["source"]),
        ("target", target_sizes or SIZES["target"]),
    )
    images = [sizes.train_images + sizes.queries + sizes.gallery_images for _, sizes in pair]
    folders = []
    for before, (domain, sizes) in zip((0, images[0]), pair, strict=True):
        report = partial(_report, on_progress, before, sum(images))
        folders.append(synthesize_domain(root, domain, seed=seed, sizes=sizes, processes=processes, on_progress=report))
    return folders[0], folders[1]


def _report(on_progress: Progress | None, before: int, total: int, done: int, _: int) -> None:
    """Pass one domain's progress on as the pair's."""
    if on_progress is not None:
        on_progress(before + done, total)
