"""The `pul` command: arguments in, flows started, results printed. Nothing is computed here, and nothing heavy is imported before it is needed."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.environment import API_URL, configure

app = typer.Typer(
    help="Carry a person re-identification model from labelled cameras to a camera network nobody has labelled.",
    epilog="Start with `pul demo`: drawn people, the whole loop, a few minutes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command; what cannot work is said in one line, with exit code 1."""
    configure()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from deployments.complaints import in_one_line

        line = in_one_line(error)
        if line is None:
            raise
        sys.exit(f"pul: {line}")


@app.callback()
def _pul() -> None:
    pass


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's UI and API.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI.")] = 5000,
) -> None:
    """Start Prefect, MLflow, the deployments and a worker on this machine; Ctrl-C stops them all.

    Then, in another terminal in the same directory: prefect deployment run pul/iterate --watch
    """
    from deployments.servers import up as start

    start(prefect_port, mlflow_port)


if __name__ == "__main__":
    main()
