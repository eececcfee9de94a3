"""Draw docs/images/ranked-list.png: a query and the start of its ranked list, before and after the loop.

The query is not chosen by hand: it is the one whose average precision rises by the median amount of all queries.

Usage: python docs/figures/ranked_list.py .pul/runs/ID, for a finished run whose target is synthetic people, such as that of `pul demo`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from pul_core.arrays import Features, Ints
from pul_core.identities import JUNK_PID
from pul_core.learning.extraction import extract_features
from pul_core.synthetic.people import GENERATOR_VERSION
from tasks.store.model_file import read_model_bytes

FILE = Path(__file__).parents[1] / "images" / "ranked-list.png"
SHOWN = 10  # ranks
WIDTH, HEIGHT, GAP, MARGIN = 64, 128, 14, 16  # pixels
RIGHT, WRONG, INK = "#2e7d32", "#c62828", "#263238"


def main(run: Path, root: Path) -> None:
    """Draw the figure for a run and the folder of its target."""
    images = pq.read_table(run / "images.parquet").append_column("pid", pq.read_table(run / "labels.parquet")["pid"])
    last = max(int(folder.name.removeprefix("iteration=")) for folder in run.glob("iteration=*"))
    before, after = (pq.read_table(run / f"iteration={t}" / "scores.parquet") for t in (0, last))
    gain = pc.subtract(after["ap"], before["ap"]).to_numpy()
    chosen = int(np.argsort(gain, kind="stable")[len(gain) // 2])
    query = images.take([before["row"][chosen].as_py()])
    gallery = images.filter(pc.and_(pc.equal(images["split"], "gallery"), pc.not_equal(images["pid"], JUNK_PID)))
    same = pc.and_(pc.equal(gallery["pid"], query["pid"][0]), pc.equal(gallery["camid"], query["camid"][0]))
    gallery = gallery.filter(pc.invert(same))  # the protocol ignores the same person on the same camera
    correct = pc.equal(gallery["pid"], query["pid"][0]).to_numpy()
    rows = []
    for t, scores in ((0, before), (last, after)):
        order = ranking(run / f"iteration={t}" / "model.safetensors", root, query, gallery)
        title = "before: direct transfer" if t == 0 else f"after: iteration {t}"
        rows.append((f"{title}, average precision {scores['ap'][chosen].as_py():.2f}", order[:SHOWN]))
    canvas = draw(rows, correct, root / query["path"][0].as_py(), [root / path for path in gallery["path"].to_pylist()])
    canvas.quantize(128, dither=Image.Dither.NONE).save(FILE, optimize=True)
    print(f"query {query['path'][0]}, average precision {before['ap'][chosen]} -> {after['ap'][chosen]}")


def ranking(model_file: Path, root: Path, query: pa.Table, gallery: pa.Table) -> Ints:
    """Return the positions of the gallery images by falling similarity to the query."""
    model, config = read_model_bytes(model_file.read_bytes())

    def features(table: pa.Table) -> Features:
        crops = [Image.open(root / path).convert("RGB") for path in table["path"].to_pylist()]
        pixels = np.stack([np.asarray(crop.resize((config.width, config.height), Image.Resampling.BILINEAR)) for crop in crops])
        extracted = np.concatenate(list(extract_features(model, pixels, device="cpu", dtype="float32")))
        return extracted / np.linalg.norm(extracted, axis=1, keepdims=True)

    return np.argsort(-(features(gallery) @ features(query)[0]), kind="stable")


def draw(rows: list[tuple[str, Ints]], correct: npt.NDArray[np.bool_], query: Path, gallery: list[Path]) -> Image.Image:
    """Return the picture: the query on the left, a row of ranked images per model, each framed and marked as right or wrong."""
    row_height = HEIGHT + 62
    left = MARGIN + WIDTH + 40
    canvas = Image.new("RGB", (left + SHOWN * (WIDTH + GAP) + MARGIN, MARGIN + len(rows) * row_height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    paste(canvas, query, MARGIN, MARGIN + 24 + row_height // 2, INK)
    pen.text((MARGIN, MARGIN + row_height // 2), "query", fill=INK, font=font)
    for row, (title, order) in enumerate(rows):
        top = MARGIN + row * row_height
        pen.text((left, top), title, fill=INK, font=font)
        for rank, position in enumerate(order.tolist()):
            x, colour = left + rank * (WIDTH + GAP), RIGHT if correct[position] else WRONG
            paste(canvas, gallery[position], x, top + 24, colour)
            middle, y = x + WIDTH // 2, top + 24 + HEIGHT + 13
            mark = [(-7, 0), (-2, 5), (7, -5)] if correct[position] else [(-6, -6), (6, 6), (0, 0), (6, -6), (-6, 6)]
            pen.line([(middle + dx, y + dy) for dx, dy in mark], fill=colour, width=3)
    return canvas


def paste(canvas: Image.Image, crop: Path, x: int, y: int, colour: str) -> None:
    """Paste a crop with a coloured frame."""
    canvas.paste(Image.open(crop).convert("RGB").resize((WIDTH, HEIGHT)), (x, y))
    ImageDraw.Draw(canvas).rectangle((x - 3, y - 3, x + WIDTH + 2, y + HEIGHT + 2), outline=colour, width=4)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    drawn = folder.parents[1] / "synthetic" / f"v{GENERATOR_VERSION}-seed-{saved['target'].split(':')[1].split('/')[0]}" / "target"
    main(folder, drawn)
