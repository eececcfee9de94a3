"""Section on provenance: the data, the parameters, the versions and the digest of every artifact."""

from datetime import datetime

from tasks.report.run_data import RunData, digests
from tasks.report.views import SectionView, TableView
from tasks.store.config import flatten
from tasks.store.runs import format_time


def provenance(run: RunData) -> SectionView:
    """Show what a run was made from, down to digests."""
    start = run.resolved[-1] if run.resolved else {}
    versions = start.get("versions", {})
    source = ", ".join(run.parameters.get("source") or []) or run.parameters.get("original_model") or "–"
    facts = [
        ["run", run.id],
        ["MLflow", f"experiment {run.experiment}, run {run.mlflow_run_id}"],
        ["Prefect", f"flow run {run.flow_run_id or '–'}"],
        ["started", format_time(datetime.fromtimestamp(int(run.started)))],
        ["recipe", run.recipe],
        ["source", str(source)],
        ["target", str(run.parameters.get("target"))],
        ["git commit", run.commit or "–"],
        [
            "computed on",
            f"{start.get('device', '–')}, threads: {start.get('threads', '–')}, training in {start.get('training_dtype', '–')}",
        ],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or "–"],
    ]
    files = [["run", name, digest] for name, digest in digests(run.files).items()]
    files += [[f"iteration {number}", name, digest] for number, uris in run.iterations.items() for name, digest in digests(uris).items()]
    parameters = [[name, str(value)] for name, value in sorted(flatten(run.parameters).items()) if value is not None]
    return SectionView(
        name="provenance",
        title="Provenance",
        lead="What the result was made from. The same parameters and inputs, versions and number of threads give the same digests.",
        tables=[
            TableView(["", "value"], facts, left=["", "value"], title="Run"),
            TableView(
                ["of", "artifact", "digest"],
                files,
                left=["of", "artifact", "digest"],
                note="The first 32 hexadecimal digits of the file's SHA-256, which are its name in the store.",
                title="Digests",
            ),
            TableView(["parameter", "value"], parameters, left=["parameter", "value"], title="Parameters"),
        ],
    )
