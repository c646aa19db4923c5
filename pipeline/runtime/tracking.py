"""MLflow runs, one nested run per stage below one parent per pipeline run, and a timings file per stage.

Results are recorded by DVC, not here. A broken or missing MLflow costs one warning line, never a stage;
DELTASPACE_TRACKING=0 turns it off.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.runtime import files
from pipeline.runtime.errors import InputError

EXPERIMENT = "deltaspace"
RUN_ID = "DELTASPACE_RUN_ID"  # environment: "PID-MILLISECONDS" of the `make repro` above this process
FLUSH_ROWS = 500  # metrics per request
FLUSH_SECONDS = 20.0
FAILED_TAG, PID_TAG, KEY_TAG = "deltaspace.failed", "deltaspace.pid", "deltaspace.key"


class Run:
    """MLflow run of one stage. No method raises: after MLflow's first error every call does nothing.

    client: mlflow.MlflowClient, or None for a run that is not tracked.
    run_id, parent_id: MLflow's ids.
    stage: prefix of the stage's metrics in the parent run.
    """

    def __init__(self, client: Any = None, run_id: str = "", parent_id: str = "", stage: str = "") -> None:
        self.run_id, self.parent_id, self.stage = run_id, parent_id, stage
        self.parts: dict[str, float] = {}
        self._client = client
        self._rows: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self._latest: dict[str, float] = {}
        self._flushed = time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the stage: a metric, and an entry of the timings file."""
        start = time.monotonic()
        yield
        self.parts[f"{name}_seconds"] = seconds = time.monotonic() - start
        self.log(0, **{f"{name}_seconds": seconds})

    def log(self, step: int = 0, **metrics: float) -> None:
        """Log points of curves, as in `run.log(step=100, loss=0.3)`; they are sent in batches."""
        if self._client is None:
            return
        now = _now()
        self._rows += [(name, float(value), now, step) for name, value in metrics.items()]
        self._latest |= {name: float(value) for name, value in metrics.items()}
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def figure(self, name: str, path: Path) -> None:
        """Show the file at `path` beside the run, in its folder `name`."""
        self._try(lambda client: client.log_artifact(self.run_id, str(path), name))

    def flush(self) -> None:
        """Send the waiting metrics."""
        rows, self._rows, self._flushed = self._rows, [], time.monotonic()
        self._try(lambda client: _log_metrics(client, self.run_id, rows))

    def end(self, status: str, seconds: float) -> None:
        """Close the run; its latest values and its status go to the parent too.

        status: "FINISHED" or "FAILED".
        """
        self.log(seconds=seconds)
        self.flush()
        summary = [(f"{self.stage}.{name}", value, _now(), 0) for name, value in self._latest.items()]
        self._try(lambda client: _log_metrics(client, self.parent_id, summary))
        self._try(lambda client: client.set_terminated(self.run_id, status))
        if status == "FAILED":
            self._try(lambda client: client.set_tag(self.parent_id, FAILED_TAG, self.stage))
        self._try(lambda client: _end_parent(client, self.parent_id))

    def _try(self, action: Callable[[Any], Any]) -> None:
        if self._client is not None:
            try:
                action(self._client)
            except Exception as error:  # whatever MLflow raises, the stage continues
                self._client = None
                _warn(error)


@contextmanager
def stage(name: str, domain: str, params: Mapping[str, Any], root: Path, timing: Path) -> Iterator[Run]:
    """Track one stage: its parameters, what is logged to the run, git commit, experiment name, status and timings.

    name: of the stage, with its editor if it has one ("edit_latent-deltaedit_g").
    params: effective parameters; nested ones get dotted names.
    root: the project; MLflow's files lie in its main checkout.
    timing: JSON file for seconds and peak memory, written when the stage succeeds.
    """
    run = _start(name, domain, params, root) if _enabled() else Run()
    start, status = time.monotonic(), "FAILED"
    try:
        yield run
        status = "FINISHED"
        _write_timing(timing, {"seconds": time.monotonic() - start, **run.parts})
    finally:
        run.end(status, time.monotonic() - start)


def new_run_id() -> str:
    """Value of $DELTASPACE_RUN_ID for the stages below this process."""
    return f"{os.getpid()}-{_now()}"


def finish_repro(root: Path, run_id: str) -> str:
    """Log the numbers of all reports to the parent run of a finished `dvc repro`; return a line to print.

    Cached stages start no run, so that a repro with nothing to do gets a run named "nothing changed" here.

    run_id: $DELTASPACE_RUN_ID of the stages.
    """
    if not _enabled():
        return "tracking is off"
    try:
        client = _client(root)
        experiment = _experiment(client, root)
        parent = _run_with_key(client, experiment, f"repro#{run_id}")
        changed = parent is not None
        if parent is None:
            tags = {"deltaspace.changed": "no", **_common_tags(root)}
            parent = client.create_run(experiment, run_name="nothing changed", tags=tags).info.run_id
        _log_metrics(client, parent, _report_metrics(root))
        _end_parent(client, parent)
    except Exception as error:
        _warn(error)
        return "not tracked"
    return "tracked in MLflow" if changed else "nothing changed"


def warm_up(root: Path) -> None:
    """Import MLflow and open its database ahead of `finish_repro`, which takes seconds."""
    if _enabled():
        with suppress(Exception):  # `finish_repro` reports it
            _client(root)


def store_uri(root: Path) -> str:
    """MLflow's tracking store: $MLFLOW_TRACKING_URI, else mlflow.db in the main checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{files.main_checkout(root) / 'mlflow.db'}"


def peak_memory() -> int:
    """Peak resident memory in bytes of this process or of the largest of its finished children."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(of).ru_maxrss for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _enabled() -> bool:
    return os.environ.get("DELTASPACE_TRACKING", "1") != "0"


def _now() -> int:
    return int(time.time() * 1000)


def _warn(error: BaseException) -> None:
    reason = (str(error).splitlines() or [""])[0][:200]
    print(f"warning: not tracked in MLflow ({type(error).__name__}: {reason})", file=sys.stderr, flush=True)


def _start(name: str, domain: str, params: Mapping[str, Any], root: Path) -> Run:
    try:
        from mlflow.entities import Param

        client = _client(root)
        experiment = _experiment(client, root)
        parent = _parent(client, experiment, root)
        _close_dead(client, experiment)
        tags = {"deltaspace.stage": name, "deltaspace.domain": domain, PID_TAG: str(os.getpid()), **_common_tags(root)}
        tags |= {"mlflow.parentRunId": parent}
        run_id = client.create_run(experiment, run_name=f"{name} {domain}", tags=tags).info.run_id
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in _flat(params).items()])
        return Run(client, run_id, parent, f"{domain}.{name}")
    except Exception as error:
        _warn(error)
        return Run()


def _client(root: Path) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for verbose in ("alembic", "mlflow"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    with _lock(root):  # two processes must not both create the database
        client = MlflowClient(store_uri(root))
        client.search_experiments(max_results=1)
    return client


def _lock(root: Path) -> Any:
    from filelock import FileLock

    folder = files.main_checkout(root) / ".cache" / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "store.lock", timeout=120)


def _experiment(client: Any, root: Path) -> str:
    """Id of the experiment, created where it is missing."""
    if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
        return experiment.experiment_id
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (files.main_checkout(root) / "mlruns").as_uri()
    return client.create_experiment(EXPERIMENT, artifact_location=artifacts)


def _run_with_key(client: Any, experiment: str, key: str) -> str | None:
    runs = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return runs[0].info.run_id if runs else None


def _parent(client: Any, experiment: str, root: Path) -> str:
    """Id of the parent of this pipeline run; the first of its stages creates it."""
    key, label = _pipeline_run()
    with _lock(root):
        if (parent := _run_with_key(client, experiment, key)) is not None:
            client.update_run(parent, status="RUNNING")
            return parent
        tags = {KEY_TAG: key, PID_TAG: key.rpartition("#")[2].split("-")[0], **_common_tags(root)}
        return client.create_run(experiment, run_name=label, tags=tags).info.run_id


def _pipeline_run() -> tuple[str, str]:
    """Key and label of the pipeline run above this process.

    Without $DELTASPACE_RUN_ID (a plain `dvc repro`, a queue's worker, a stage by hand) the process group identifies it:
    shells start each command in a group of its own, and its children stay in it.
    """
    import psutil

    run_id = os.environ.get(RUN_ID)
    if not run_id:
        leader, start = os.getpgrp(), 0.0
        with suppress(psutil.Error):  # the leader may have ended
            start = psutil.Process(leader).create_time()
        run_id = f"{leader}-{int(start * 1000)}"
    label = os.environ.get("DVC_EXP_NAME") or ("repro" if os.environ.get("DVC_STAGE") else "by hand")
    return f"{label}#{run_id}", label


def _end_parent(client: Any, parent: str) -> None:
    failed = FAILED_TAG in client.get_run(parent).data.tags
    client.set_terminated(parent, "FAILED" if failed else "FINISHED")


def _close_dead(client: Any, experiment: str) -> None:
    """Mark running runs whose process has ended as KILLED."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=100):
        pid = run.data.tags.get(PID_TAG, "")
        if pid.isdigit() and not files.alive(int(pid)):
            client.set_terminated(run.info.run_id, "KILLED")


def _common_tags(root: Path) -> dict[str, str]:
    from mlflow.utils.git_utils import get_git_commit

    tags = {
        "mlflow.source.git.commit": get_git_commit(str(root)) or "",
        "mlflow.source.name": "deltaspace",
        "mlflow.source.type": "LOCAL",
    }
    if name := os.environ.get("DVC_EXP_NAME"):
        tags |= {"dvc.exp": name, "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV", "")}
    return {key: value for key, value in tags.items() if value}


def _report_metrics(root: Path) -> list[tuple[str, float, int, int]]:
    """Every number in reports/<domain>/summary.json."""
    rows = []
    for path in sorted((root / "reports").glob("*/summary.json")):
        for name, value in _flat(json.loads(path.read_text(encoding="utf-8"))).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                rows.append((f"{path.parent.name}.{name}", float(value), _now(), 0))
    return rows


def _log_metrics(client: Any, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
    if rows:
        from mlflow.entities import Metric

        client.log_batch(run_id, metrics=[Metric(*row) for row in rows])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _write_timing(path: Path, seconds: Mapping[str, float]) -> None:
    content = {**{part: round(value, 1) for part, value in seconds.items()}, "peak_rss": peak_memory()}
    try:
        files.write_bytes(path, json.dumps(content, sort_keys=True).encode())
    except InputError as error:  # the stage's outputs are complete already
        print(f"warning: {error}", file=sys.stderr, flush=True)
