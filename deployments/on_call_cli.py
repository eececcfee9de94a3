"""Commands for the person on call: what is wrong, and what may be cleared away."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from deployments.environment import active_server
from pul_core.errors import UserError
from tasks.store.home import home


def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what runs, what is stuck, what is damaged and how much room is left; exit code 1 if something wants attention."""
    from deployments.complaints import quieten
    from deployments.servers import server_answers
    from tasks.operations.housekeeping import find_damage, sizes
    from tasks.operations.lost_runs import lost_runs, open_runs

    quieten()
    url = active_server()
    lost = [str(run.info.run_name) for run in lost_runs()]
    found = {
        "home": str(home()),
        "free_bytes": shutil.disk_usage(home()).free,
        "bytes": sizes(),
        "server": url,
        "server_answers": url is not None and server_answers(f"{url}/health"),
        "running": [name for name in open_runs() if name not in lost],
        "lost": lost,
        "unfinished_steps": sorted(path.name for path in home().glob("checkpoints/*")),
        "damaged": [f"{damage.path} {damage.what}" for damage in find_damage()],
    }
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_report(found)))
    if lost or found["damaged"] or (url and not found["server_answers"]):
        raise typer.Exit(1)


def gc(
    older_than: Annotated[float, typer.Option(min=0, help="Days since something was last written or read.")] = 7,
    thin: Annotated[bool, typer.Option(help="Give up features and models between the first and the last iteration too.")] = False,
    dry_run: Annotated[bool, typer.Option(help="List it and remove nothing.")] = False,
) -> None:
    """Remove what no run needs: old unfinished work, unused caches, files no run refers to. Configs, tables and scores of runs stay."""
    from deployments.complaints import quieten
    from tasks.operations.housekeeping import find_rubbish, remove
    from tasks.operations.lost_runs import lost_runs, open_runs

    quieten()
    lost = {run.info.run_name for run in lost_runs()}
    if older_than < 1 and (running := [name for name in open_runs() if name not in lost]):
        raise UserError(f"run {running[0]} is running and its newest files are not to be touched: wait, or use --older-than 1")
    rubbish = find_rubbish(older_than_days=older_than, keep_iterations=not thin)
    for item in rubbish:
        typer.echo(f"{item.bytes / 1e6:10.1f} MB  {item.path.relative_to(home())}  {item.why}")
    if not dry_run:
        remove(rubbish)
    typer.echo(f"{sum(item.bytes for item in rubbish) / 1e6:10.1f} MB in {len(rubbish)} {'would go' if dry_run else 'are gone'}")


def _report(found: dict[str, object]) -> list[str]:
    sizes, damaged, lost, running, unfinished = (found[name] for name in ("bytes", "damaged", "lost", "running", "unfinished_steps"))
    assert isinstance(sizes, dict) and isinstance(damaged, list) and isinstance(lost, list)
    assert isinstance(running, list) and isinstance(unfinished, list) and isinstance(found["free_bytes"], int)
    lines = [f"home     {found['home']}, {found['free_bytes'] / 1e9:.1f} GB free"]
    lines += [f"  {name:12} {size / 1e6:10.1f} MB" for name, size in sizes.items() if size > 1e6]
    if found["server"]:
        lines.append(f"server   {found['server']}" + ("" if found["server_answers"] else " does not answer: start pul up again"))
    lines += [f"running  {name}" for name in running]
    lines += [f"lost     {name}: its process is gone; pul resume {name}" for name in lost]
    if unfinished:
        lines.append(f"steps    {len(unfinished)} unfinished; they go on when their run is resumed, and pul gc clears those nobody wants")
    lines += [f"damaged  {line}; pul resume or the same run again makes it anew" for line in damaged]
    sound = not lost and not damaged and (found["server_answers"] or not found["server"])
    return [*lines, *(["nothing wants attention"] if sound else [])]


def purge(
    run: Annotated[str | None, typer.Argument(help="A run to remove with everything only it has.")] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="An image, or a folder of images, to remove every trace of; may be repeated.")
    ] = None,
    identity: Annotated[str | None, typer.Option(help="Remove every trace of this person in the data set given by --data.")] = None,
    data: Annotated[str | None, typer.Option(help="The data set that knows the identity.")] = None,
    layout: Annotated[str | None, typer.Option(help="How that data set lies, where its folder does not tell.")] = None,
    pattern: Annotated[str | None, typer.Option(help="What its file names tell, for layout pattern.")] = None,
) -> None:
    """Remove a run, or every pixel, feature and name taken from certain images, and list what was removed. Data sets are not touched."""
    from deployments.complaints import quieten
    from tasks.operations.purge import digests_below, digests_of_identity, purge_images, purge_run

    quieten()
    if sum((run is not None, bool(images), identity is not None)) != 1 or (identity is None) != (data is None):
        raise UserError("give a run, or --images FILE_OR_FOLDER, or --identity ID with --data PATH")
    if run:
        done = purge_run(run)
    else:
        digests = digests_below(images) if images else digests_of_identity(str(data), str(identity), layout, pattern)
        typer.echo(f"{len(digests)} images:\n" + "\n".join(f"  {digest}" for digest in sorted(digests)))
        done = purge_images(digests)
    typer.echo("\n".join(f"removed  {path}" for path in done.removed) or "nothing of it was kept")
    typer.echo("\n".join(f"learnt from them: model of {model}; pul purge {model.split('/')[0]} removes it" for model in done.models))
    if done.left:
        typer.echo("\n".join(f"STILL THERE  {path}" for path in done.left))
        raise typer.Exit(1)
    typer.echo(f"none is left below {home()}; Prefect's log may still name files, and MLflow keeps deleted runs' numbers until mlflow gc")
