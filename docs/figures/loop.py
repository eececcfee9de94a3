"""Draw docs/images/loop.svg: one iteration of the loop, its steps and the file that each one writes.

Usage: python docs/figures/loop.py
"""

from html import escape
from pathlib import Path

FILE = Path(__file__).parents[1] / "images" / "loop.svg"
WIDTH, HEIGHT = 1000, 390
BOX_WIDTH, BOX_HEIGHT = 168, 64
BLUE, GREEN, GREY, DARK = "#3f51b5", "#2e7d32", "#607d8b", "#263238"
# Left edge, top edge, title, line below it, colour.
BOXES = {
    "source": (20, 20, "labelled source", "images and identities", GREY),
    "original": (270, 20, "original model", "model.safetensors", BLUE),
    "target": (20, 175, "unlabelled target", "images.parquet", GREY),
    "extract": (230, 175, "1. extract", "features.parquet", GREEN),
    "cluster": (422, 175, "2. cluster", "clusters.parquet", GREEN),
    "select": (614, 175, "3. select", "reliable.parquet", GREEN),
    "tune": (806, 175, "4. fine-tune", "model.safetensors", GREEN),
}


def main() -> None:
    """Write the figure."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">',
        "<title>The loop of Progressive Unsupervised Learning</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{DARK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<rect x="212" y="125" width="776" height="250" rx="12" fill="#f1f8e9" stroke="{GREEN}" stroke-dasharray="6 4"/>',
        text(226, 150, "iteration t = 1, 2, ...", "start", GREEN),
        *(box(*values) for values in BOXES.values()),
        arrow("M188 52 H270"),
        text(229, 42, "train"),
        arrow("M354 84 V175"),
        text(362, 112, "first iteration", "start"),
        arrow("M438 52 H890 V175"),
        text(664, 42, "paper: each fine-tuning starts from it; modern: from model t - 1"),
        arrow("M188 207 H230"),
        *(arrow(f"M{x} 207 H{x + 24}") for x in (398, 590, 782)),
        arrow("M890 239 V330 H314 V239"),
        text(602, 322, "model t: extract again, until the size of the reliable set is stable"),
        text(602, 352, "Each model is also scored if the target has labels: scores.parquet. No step reads the scores."),
        "</svg>",
    ]
    FILE.write_text("\n".join(parts) + "\n", encoding="utf-8")


def box(left: int, top: int, title: str, below: str, colour: str) -> str:
    """Return a box with two lines of text."""
    middle = left + BOX_WIDTH // 2
    frame = f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="white" stroke="{colour}" stroke-width="2"/>'
    return frame + text(middle, top + 27, title, colour=colour, size=17) + text(middle, top + 49, below)


def arrow(path: str) -> str:
    """Return a line with a tip at its end."""
    return f'<path d="{path}" fill="none" stroke="{DARK}" stroke-width="1.5" marker-end="url(#tip)"/>'


def text(x: int, y: int, content: str, anchor: str = "middle", colour: str = DARK, size: int = 13) -> str:
    """Return a line of text."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(content)}</text>'


if __name__ == "__main__":
    main()
