"""Experiments on switches of the method: the loop on `pul_core` alone, for a list of variants and seeds, resumable, with one table.

    python benchmarks/lab.py pack cuhk01 data/cuhk01 --out sets/cuhk01.npz
    python benchmarks/lab.py run benchmarks/lab.json --sets sets --out .pul/lab --size 96 48
    python benchmarks/lab.py table .pul/lab --baseline modern

It requires only what `pul_core` requires. Each finished iteration is a line of OUT/records.jsonl, so a run that was killed continues with
what is missing. The models of a seed equal those of examples/pul_by_hand.py. benchmarks/README.md describes a queue.
"""

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project need not be installed
sys.path.insert(0, str(Path(__file__).parent))  # also if Python does not add it (PYTHONSAFEPATH)

import numpy as np
import torch
from lab_loop import Loop, Record, estimate, iterate, score, score_direct, timed, train_source, training_images
from lab_queue import IDENTITY, Plan, plans, read_queue
from lab_table import markdown, tabulate
from packed import Sets, pack
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pul_core.errors import UserError
from pul_core.learning.backbone import architecture, build_backbone
from pul_core.settings import Model

DIRECT = "direct transfer"  # why nothing follows the record of a set on which a source model is scored only


def read_records(folder: Path) -> list[Record]:
    """Read the records of a folder, those of a run in succession.

    A last line that is incomplete, because its process was killed, is ignored. A run that started again because its model was lost replaces
    what it had recorded of the same and later iterations.
    """
    file = folder / "records.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    runs: dict[tuple[Any, ...], list[Record]] = {}
    for line in text[: text.rfind("\n") + 1].splitlines():
        record = json.loads(line)
        history = runs.setdefault(tuple(record[name] for name in IDENTITY), [])
        history[record["iteration"] :] = [record]
    return [record for history in runs.values() for record in history]


def remove_incomplete_record(folder: Path) -> None:
    """Remove a last line that is incomplete, so that the next record does not continue it."""
    file = folder / "records.jsonl"
    if file.exists():
        text = file.read_bytes()
        os.truncate(file, text.rfind(b"\n") + 1)


def append_record(folder: Path, record: Record) -> None:
    """Append a record to the file, and print what is most important of it."""
    with (folder / "records.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    names = ("experiment", "source", "target", "seed", "iteration", "reliable", "clusters", "images_seen")
    texts = [str(record[name]) for name in names if name in record]
    texts += [f"{name} {record[name]:.1%}" for name in ("rank_1", "mAP") if name in record]
    print(", ".join([*texts, record["stop"] or "", f"{sum(record['seconds'].values()):.0f} s"]), flush=True)


def save_model(file: Path, model: nn.Module, **notes: float) -> None:
    """Write a model, completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.unfinished")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, unfinished, {"lab": json.dumps(notes)})
    unfinished.replace(file)


def load_model(file: Path, settings: Model) -> nn.Module:
    model = build_backbone(**architecture(settings), initialise=False)
    model.load_state_dict(load_file(file))
    return model


def original_model(plan: Plan, sets: Sets, folder: Path) -> tuple[nn.Module, float]:
    """Return the model that is trained on the sources and the seconds that its training took; experiments share its file."""
    file = folder / "models" / f"source-{plan.source_key}.safetensors"
    if not file.exists():
        seconds: dict[str, float] = {}
        with timed(seconds, "pretrain"):
            model = train_source(plan, sets)
        save_model(file, model, **seconds)
    with safe_open(file, "pt") as opened:
        notes = json.loads(opened.metadata()["lab"])
    return load_model(file, plan.recipe.model), notes["pretrain"]


def run_plan(plan: Plan, sets: Sets, folder: Path) -> None:
    """Run what is missing of a plan: the record of iteration 0, then an iteration at a time, until the loop stops."""
    common = plan.identity | {"key": plan.key, "device": plan.device, "size": list(sets.size)}
    records = [record for record in read_records(folder) if plan.identity.items() <= record.items()]
    if any(record["key"] != plan.key for record in records):
        raise UserError(
            f"{folder} has records of {plan.experiment!r} on {plan.target!r}, seed {plan.seed}, that were made with other settings, sets, "
            "weights or on another device: name the experiment differently, or choose another folder"
        )
    if records and records[-1]["stop"]:
        return
    while len(records) > 1 and not model_file(folder, plan, len(records) - 1).exists():
        records.pop()
    original, pretrain_seconds = original_model(plan, sets, folder)
    train = training_images(original, plan, sets)
    if not records:
        seconds = {"pretrain": pretrain_seconds}
        with timed(seconds, "score"):
            scores = score_direct(original, plan, sets, train)
        stop = None if plan.has_loop else DIRECT
        records = [common | {"iteration": 0, "images_seen": 0} | scores | {"stop": stop, "seconds": seconds}]
        append_record(folder, records[0])
    if plan.has_loop:
        last = len(records) - 1
        model = load_model(model_file(folder, plan, last), plan.recipe.model) if last else original
        loop = Loop(train, original, model, estimate(model, plan, train), records)
        run_iterations(loop, plan, sets, folder, common)


def run_iterations(loop: Loop, plan: Plan, sets: Sets, folder: Path, common: Record) -> None:
    """Run iterations until the loop stops, and store the record and the model of each; only the last model is kept."""
    while (last := loop.records[-1])["stop"] is None:
        t = len(loop.records)
        try:
            model, record = iterate(loop, plan)
            with timed(record["seconds"], "score"):
                statistics = estimate(model, plan, loop.train)
                record |= score(model, statistics, plan, sets)
        except UserError as error:  # a result, too: e.g. there are too few clusters to train on
            record = {"images_seen": last["images_seen"], "stop": f"failed: {error}", "seconds": {}}
        else:
            save_model(model_file(folder, plan, t), model)
            loop = loop._replace(model=model, statistics=statistics)
        loop.records.append(common | {"iteration": t} | record)
        append_record(folder, loop.records[-1])
        if "mAP" in record:
            model_file(folder, plan, t - 1).unlink(missing_ok=True)


def model_file(folder: Path, plan: Plan, iteration: int) -> Path:
    return folder / "models" / f"{plan.key}-{iteration}.safetensors"


def run_queue(queue: Path, sets: Sets, folder: Path, device: str, only: list[str] | None) -> int:
    """Run all experiments; one that crashes does not stop the others. Returns the number of crashes."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_incomplete_record(folder)
    crashes = 0
    for experiment in read_queue(queue):
        for seed in experiment.seeds if only is None or experiment.name in only else ():
            try:
                for plan in plans(experiment, seed, sets, device):
                    run_plan(plan, sets, folder)
            except Exception as error:
                crashes += 1
                print(f"{experiment.name}, seed {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                if not isinstance(error, UserError):
                    traceback.print_exc()
    return crashes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pack", help="pack a data set into one file")
    command.add_argument("name", help="what a queue calls the set")
    command.add_argument("source", help="a folder in the layout of Market-1501, or synthetic:SEED/source or /target")
    command.add_argument("--out", type=Path, required=True, metavar="FILE")
    command.add_argument("--height", type=int, default=160, help="higher images are scaled down to it")
    command.add_argument("--quality", type=int, default=90, help="of the JPEG")
    command.add_argument("--hold-out", type=int, default=0, metavar="N", help="score the last N identities of a set that has no gallery")
    command = commands.add_parser("run", help="run what is missing of a queue")
    command.add_argument("queue", type=Path)
    command.add_argument("--sets", type=Path, required=True, metavar="FOLDER", help="packed sets and weights")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--device", default="cpu")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--size", type=int, nargs=2, default=(96, 48), metavar=("HEIGHT", "WIDTH"))
    command.add_argument("--only", nargs="+", metavar="NAME", help="run these experiments of the queue only")
    command = commands.add_parser("table", help="print the table of a folder, and write it and JSON beside the records")
    command.add_argument("folder", type=Path)
    command.add_argument("--baseline", metavar="NAME", help="the experiment that the others are compared with")
    command.add_argument("--every-iteration", action="store_true")
    options = parser.parse_args()
    if options.command == "pack":
        sizes = {"height": options.height, "quality": options.quality, "hold_out": options.hold_out}
        packed = pack(options.name, options.source, options.out, **sizes)
        counts = ", ".join(f"{np.count_nonzero(packed.splits == split):,} {split}" for split in dict.fromkeys(packed.splits))
        print(f"{options.out}: {counts} images, {options.out.stat().st_size / 1e6:.1f} MB")
        return 0
    if options.command == "run":
        torch.set_num_threads(options.threads)
        sets = Sets(options.sets, tuple(options.size))
        return min(1, run_queue(options.queue, sets, options.out, options.device, options.only))
    rows = tabulate(read_records(options.folder), options.baseline, options.every_iteration)
    (options.folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (options.folder / "table.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
