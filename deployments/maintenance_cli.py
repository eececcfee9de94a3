"""Maintenance commands: `pul doctor` reports problems, `pul gc` frees disk space, `pul purge` deletes data on request."""

import json
import math
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.arguments import Layout, Pattern
from deployments.environment import active_server
from deployments.errors import quieten
from deployments.servers import server_answers
from pul_core.errors import UserError
from tasks.store.home import artifact_root, home
from tasks.store.runs import MAX_LISTED


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Report lost and interrupted runs, damaged files and free disk space.

    The exit code is 1 if something requires attention. Runs that failed or were killed are listed, but do not count.
    """
    from tasks.engine.compute import available_devices, nvidia_problem
    from tasks.operations.housekeeping import find_damage, sizes
    from tasks.operations.lost_runs import lost_runs, running_runs
    from tasks.tracking.results import interrupted_runs, run_id_of

    quieten()
    url = active_server()
    lost = [run_id_of(run) for run in lost_runs()]
    health = {
        "home": str(home()),
        "free_bytes": shutil.disk_usage(home()).free,
        "bytes": sizes(),
        "devices": available_devices(),
        "device_problem": nvidia_problem(),
        "server": url,
        "server_answers": url is not None and server_answers(f"{url}/health", patience=15),
        "running": running_runs(),
        "lost": lost,
        "interrupted": interrupted_runs(),
        "unfinished_steps": sorted(path.name for path in home().glob("checkpoints/*")),
        "damaged": [f"{damage.path} {damage.problem}" for damage in find_damage()],
    }
    healthy = not (lost or health["damaged"] or (url and not health["server_answers"]))
    verdict = f"\nnothing {'else ' if health['interrupted'] else ''}requires attention" if healthy else ""
    typer.echo(json.dumps(health, indent=2) if as_json else _health_text(health) + verdict)
    if not healthy:
        raise typer.Exit(1)


def _health_text(health: dict[str, Any]) -> str:
    lines = [f"home     {health['home']}, {health['free_bytes'] / 1e9:.1f} GB free"]
    lines += [f"  {name:12} {size / 1e6:10.1f} MB" for name, size in health["bytes"].items() if size > 1e6]
    lines.append(f"devices  {', '.join(health['devices'])}{'; ' + health['device_problem'] if health['device_problem'] else ''}")
    if health["server"]:
        lines.append(f"server   {health['server']}" + ("" if health["server_answers"] else " does not answer: start pul up again"))
    lines += [f"running  {name}" for name in health["running"]]
    lines += [f"lost     {name}: its process no longer exists; pul resume {name} continues it" for name in health["lost"]]
    interrupted = list(health["interrupted"].items())
    lines += [
        f"{status:8} {name}: pul resume {name} continues it, or pul purge {name} deletes it" for name, status in interrupted[:MAX_LISTED]
    ]
    if (more := len(interrupted) - MAX_LISTED) > 0:
        lines.append(f"         {more} more runs failed or were killed: pul results --list")
    if unfinished := len(health["unfinished_steps"]):
        lines.append(f"steps    {unfinished} unfinished; they continue when their run is resumed, and pul gc removes those no run needs")
    lines += [f"damaged  {damage}; pul resume, or the same run again, writes it again" for damage in health["damaged"]]
    return "\n".join(lines)


def gc(
    older_than: Annotated[
        float, typer.Option(min=0, help="Only remove files that were last written or read at least this many days ago.")
    ] = 7,
    thin: Annotated[bool, typer.Option(help="Also remove features and models of all iterations except the first and the last.")] = False,
    dry_run: Annotated[bool, typer.Option(help="List the files without removing them.")] = False,
) -> None:
    """Free disk space: remove files that no run needs.

    These are old unfinished steps, unused caches and unreferenced files. The configs, tables and scores of runs are kept.
    """
    from tasks.operations.housekeeping import find_garbage, remove
    from tasks.operations.lost_runs import running_runs
    from tasks.store.users import housekeeping

    quieten()
    with housekeeping() as users:
        removes_new_files = older_than < 1 or "://" in artifact_root()  # no time of last use is known at a URL
        if removes_new_files and (running := [*(f"run {run}" for run in running_runs()), *(user.description for user in users)]):
            remedy = "wait until it ends" if "://" in artifact_root() else "wait until it ends, or use --older-than 1"
            raise UserError(f"{running[0]} uses the files, also new ones: {remedy}")
        in_use_since = min((user.since for user in users), default=math.inf)
        garbage = find_garbage(older_than_days=older_than, keep_iterations=not thin, in_use_since=in_use_since)
        for item in garbage:
            typer.echo(f"{item.bytes / 1e6:10.1f} MB  {str(item.path).removeprefix(f'{home()}/')}  {item.reason}")
        if not dry_run:
            remove(garbage)
    typer.echo(f"{sum(item.bytes for item in garbage) / 1e6:10.1f} MB in {len(garbage)} {'would be removed' if dry_run else 'removed'}")


def purge(
    run: Annotated[
        str | None, typer.Argument(help="The id or unique name of a run to delete, with all files that no other run uses.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="An image or a folder of images; delete all data derived from them; repeatable.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="The identity of a person in the data set --data; delete all data derived from the person's images.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The data set that contains the identity.")] = None,
    layout: Layout = None,
    pattern: Pattern = None,
) -> None:
    """Delete a run, or all data derived from certain images.

    Derived data are pixels, features, file names and reports. The deleted files are listed; data sets are not changed.
    """
    from tasks.operations.purge import digests_of_identity, digests_of_images, purge_images, purge_run

    quieten()
    if sum((run is not None, bool(images), identity is not None)) != 1 or (identity is None) != (data is None):
        raise UserError("give a run, or --images FILE_OR_FOLDER, or --identity ID with --data PATH")
    if run:
        purged = purge_run(run)
    else:
        digests = digests_of_images(images) if images else digests_of_identity(str(data), str(identity), layout, pattern)
        typer.echo(f"{len(digests)} images:\n" + "\n".join(f"  {digest}" for digest in sorted(digests)))
        purged = purge_images(digests)
    typer.echo("\n".join(f"removed  {path}" for path in purged.removed) or "there was nothing to remove")
    for model in purged.models:
        typer.echo(f"trained on them: the model of {model}; pul purge {model.split('/')[0]} removes it")
    if purged.remaining:
        typer.echo("\n".join(f"NOT REMOVED  {path}" for path in purged.remaining))
        raise typer.Exit(1)
    typer.echo(
        f"no trace is left below {home()}, except that Prefect's log and error.log may name files, and that MLflow keeps the metrics of "
        "deleted runs until mlflow gc"
    )
