"""`pul export`: writes a run's model for other runtimes, and prints parity, timing and size."""

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from deployments.arguments import Layout, Pattern, Threads, Verbose, absolute_path, check_output
from deployments.display import display
from deployments.tables import render_table
from tasks.engine.status import activity


def export_command(
    run: Annotated[str, typer.Argument(help="The id or unique name of a run, or RUN/iteration=N.")],
    format_: Annotated[str, typer.Option("--format", help="onnx, torch-export, safetensors or openvino.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The folder to write; default .pul/exports/RUN/iteration=N/FORMAT.")] = None,
    iteration: Annotated[int | None, typer.Option(min=0, help="Whose model; default the last iteration.")] = None,
    l2: Annotated[bool, typer.Option("--l2", help="Return features of length 1.")] = False,
    preprocessing: Annotated[
        str, typer.Option(help="graph: the input is uint8 pixels; json: the input is normalised, as export.json says.")
    ] = "graph",
    int8: Annotated[bool, typer.Option("--int8", help="With onnx: also write an 8-bit model, calibrated on target crops.")] = False,
    target: Annotated[
        str | None,
        typer.Option(
            parser=absolute_path,
            metavar="PATH",
            help="Other images instead of the run's target; statistics by camera are estimated from them, e.g. of a new camera.",
        ),
    ] = None,
    layout: Layout = None,
    pattern: Pattern = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the manifest export.json.")] = False,
    verbose: Verbose = False,
) -> None:
    """Export a run's model for other programs.

    The exported file runs crops of the target in its own runtime. If its features differ from those of the model by more than the stated
    bounds, nothing is written. docs/deploy.md explains formats and bounds.

    \b
    pul export amber-fox
    pul export amber-fox --format onnx --int8 --l2 --out model/
    """  # noqa: D301 \b keeps the lines of the examples
    from pul_core.errors import UserError
    from tasks.export.header import Format
    from tasks.export.options import Options, check_folder, check_options

    if preprocessing not in ("graph", "json"):
        raise UserError(f"--preprocessing must be graph or json, got {preprocessing!r}")
    options = Options(
        cast(Format, format_),
        l2=l2,
        in_graph=preprocessing == "graph",
        int8=int8,
        threads=threads,
        target=target,
        layout=layout,
        pattern=pattern,
    )
    check_options(options)
    if out is not None:
        check_output(out, "--out")
        check_folder(out)
    with display("export", verbose=verbose):
        with activity("load the libraries"):
            from tasks.export.export_run import export_run
        manifest = export_run(run, options, iteration=iteration, out=out)
    typer.echo(json.dumps(manifest, indent=2) if as_json else _manifest_text(manifest))


def _manifest_text(manifest: dict[str, Any]) -> str:
    first = manifest["files"][0]
    shape = ", ".join(map(str, first["input_shape"]))
    lines = [
        f"{manifest['folder']}",
        *(f"  {file['file']}  {file['bytes'] / 1e6:.1f} MB{_camera_text(file, manifest)}" for file in manifest["files"]),
        f"input {first['input']}: {first['input_dtype']} [{shape}], RGB; output {first['output']}: float32 [batch, {first['dimensions']}]"
        f"{', of length 1' if first['l2'] else ''}",
    ]
    for precision, report in manifest["reports"].items():
        lines += ["", f"parity, {precision}", _parity_table(report), *_rank_1_lines(report, manifest)]
    lines += ["", "speed on this machine", _timing_table(manifest["reports"])]
    return "\n".join(lines)


def _camera_text(file: dict[str, Any], manifest: dict[str, Any]) -> str:
    if file["camera"] is None:
        return "  all other cameras" if any(other["camera"] for other in manifest["files"]) else ""
    return f"  camera {file['camera']}"


def _parity_table(report: dict[str, Any]) -> str:
    rows = [
        [name, f"{row['crops']}", f"{row['feature']:.1e}", f"{row['cosine']:.1e}", f"{row['lowest_cosine']:.5f}"]
        for name, row in report["parity"].items()
    ]
    bounds = next(iter(report["parity"].values()))["bounds"]
    rows.append(["bound", "", f"{bounds['feature']:.1e}", f"{bounds['cosine']:.1e}", ""])
    return render_table(["file", "crops", "feature", "cosine", "lowest cosine to the model"], rows, left=["file"])


def _rank_1_lines(report: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    if not report["rank_1"]:
        return ["rank-1: the target has no labelled queries and gallery"]
    before, after = report["rank_1"]
    queries, gallery = manifest["rank_1_images"]
    bound = next(iter(report["parity"].values()))["bounds"]["rank_1"]
    return [
        f"rank-1 {100 * after:.1f} % instead of {100 * before:.1f} %, {queries:,} queries in {gallery:,} gallery images "
        f"(bound: {100 * bound:g} points less)"
    ]


def _timing_table(reports: dict[str, Any]) -> str:
    titles, columns = ["batch"], []
    for precision, report in reports.items():
        titles += [f"{precision} ms", f"{precision} images/s"]
        columns.append(report["timing"])
    rows = [
        [f"{parts[0]['batch']}", *(cell for part in parts for cell in (f"{part['latency_ms']:.1f}", f"{part['images_per_second']:,.0f}"))]
        for parts in zip(*columns, strict=True)
    ]
    return render_table(titles, rows)
