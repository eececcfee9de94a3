"""Writer of synthetic pedestrians, drawn by `pul_core.synthetic.people`, in the layout of Market-1501.

The folder of a domain exists completely or not at all. Its file `synthetic.json` holds the settings that it was generated with. A folder
with the same settings is reused; any other folder at that path is an error and is not changed.
"""

import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import get_args

from joblib import cpu_count
from PIL import Image

from pul_core.errors import DataError
from pul_core.synthetic.people import GENERATOR_VERSION, SIZES, Domain, Folder, PlannedImage, Sizes, draw_image, plan_domain
from tasks.data.folders import atomic_folder

SETTINGS_FILE = "synthetic.json"  # in every complete folder
JPEG_QUALITY = 90
CHUNK_SIZE = 64  # images a worker draws between two progress reports
IMAGES_PER_PROCESS = 200  # each further worker process requires this many more images


def _is_complete(folder: Path, settings: dict[str, object], num_images: int) -> bool:
    """Return whether the folder was generated with these settings and contains every image."""
    try:
        saved = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return bool(saved == settings) and sum(1 for _ in folder.glob("*/*.jpg")) == num_images


def _write_chunk(folder: Path, domain: Domain, seed: int, chunk: tuple[PlannedImage, ...]) -> int:
    """Draw and write a chunk of images, possibly in a worker process, and return their number."""
    for planned in chunk:
        path = folder / planned.folder / planned.file_name
        Image.fromarray(draw_image(domain, seed, planned)).save(path, format="JPEG", quality=JPEG_QUALITY)
    return len(chunk)


def _write_images(folder: Path, domain: Domain, seed: int, plan: tuple[PlannedImage, ...], processes: int) -> Iterator[int]:
    """Draw and write all images, in this process or in several, and yield the number written so far."""
    by_camera = sorted(plan, key=lambda planned: planned.camid)  # so that each worker computes the backdrops of few cameras
    chunks = [tuple(by_camera[i : i + CHUNK_SIZE]) for i in range(0, len(plan), CHUNK_SIZE)]
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
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the images of one domain to `root`/`domain`.

    The same seed and sizes give the same bytes with any number of processes. A complete folder with the same settings is reused; of two
    equal calls at the same time, the first wins. The processes are spawned, so a script that calls this function needs
    `if __name__ == "__main__":`.

    Args:
        root: parent folder of the domain's folder; created if it does not exist.
        domain: "source" or "target".
        seed: seed of the data set, from 0.
        sizes: the sizes; None for the domain's default.
        processes: number of worker processes; None for one per available core, or fewer for a small data set.
        on_progress: called with (images written, images in total) before the first chunk and after each; not if the folder is reused.

    Returns:
        `root`/`domain`, with bounding_box_train, query and bounding_box_test.

    Raises:
        DataError: the folder exists, but with other settings or content, or incomplete.
        UserError: the sizes are inconsistent.
        ValueError: `processes` is less than 1.

    Source: ours; file and folder names are Market-1501's.

    >>> import tempfile
    >>> small = Sizes(train_identities=2, train_images=4, test_identities=2, queries=2, gallery_images=8)
    >>> with tempfile.TemporaryDirectory() as root:
    ...     folder = synthesize_domain(Path(root), "target", seed=10, sizes=small)
    ...     sorted(path.name for path in folder.iterdir())
    ['bounding_box_test', 'bounding_box_train', 'query', 'synthetic.json']
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}.")
    sizes = sizes or SIZES[domain]
    plan, domain_folder = plan_domain(domain, seed, sizes), root / domain
    settings: dict[str, object] = {  # everything that determines the bytes of the images
        "generator_version": GENERATOR_VERSION,
        "domain": domain,
        "seed": seed,
        "sizes": asdict(sizes),
        "jpeg_quality": JPEG_QUALITY,
    }
    if _is_complete(domain_folder, settings, len(plan)):
        return domain_folder
    if domain_folder.exists():
        raise DataError(f"{domain_folder} exists but does not contain exactly these images: move it away or choose another folder.")
    workers = processes or min(cpu_count(), 1 + len(plan) // IMAGES_PER_PROCESS)
    try:
        with atomic_folder(domain_folder) as partial_folder:
            for name in get_args(Folder):
                (partial_folder / name).mkdir()
            for num_written in itertools.chain([0], _write_images(partial_folder, domain, seed, plan, workers)):
                if on_progress is not None:
                    on_progress(num_written, len(plan))
            (partial_folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError:  # another process may have completed the folder in the meantime
        if not _is_complete(domain_folder, settings, len(plan)):
            raise
    return domain_folder
