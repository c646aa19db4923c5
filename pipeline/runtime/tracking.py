"""A window on what ran: MLflow runs, one nested run per stage below one parent per pipeline run, and timings.

DVC's files are the record. A broken or missing MLflow costs one warning line, never a stage; DELTASPACE_TRACKING=0
turns it off. Seconds and memory go to data/<domain>/timings/, which no hash covers.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import params
from pipeline.storage.artefacts import Layout

EXPERIMENT = "deltaspace"
FLUSH_ROWS = 500  # metrics sent at once
FLUSH_SECONDS = 20.0
MOST_PARAMS = 100  # MLflow's limits for one batch
LONGEST = 500
FAILED_TAG = "deltaspace.failed"
PID_TAG = "deltaspace.pid"


class Run:
    """One stage's run, as its code sees it. Nothing here raises: after a failure it goes quiet."""

    def __init__(self, store: Any = None, run_id: str = "", parent_id: str = "", stage: str = "") -> None:
        self.run_id, self.parent_id, self.stage = run_id, parent_id, stage
        self._store = store
        self._waiting: list[tuple[str, float, int, int]] = []
        self._last: dict[str, float] = {}
        self._sent = time.monotonic()
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Seconds of a part of the stage, beside its own: a metric, and an entry of its timings."""
        start = time.monotonic()
        yield
        self.parts[f"{name}_seconds"] = seconds = time.monotonic() - start
        self.log(0, **{f"{name}_seconds": seconds})

    def log(self, step: int = 0, **metrics: float) -> None:
        """Points of curves: `run.log(step=100, loss=0.3)`. Sent in batches."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            self._waiting.append((name, float(value), now, step))
            self._last[name] = float(value)
        if len(self._waiting) >= FLUSH_ROWS or time.monotonic() - self._sent > FLUSH_SECONDS:
            self.flush()

    def figure(self, name: str, path: Path) -> None:
        """A picture or table that was written, shown beside the run."""
        self._do(lambda store: store.log_artifact(self.run_id, str(path), name))

    def params(self, values: Mapping[str, Any]) -> None:
        """Effective parameters; nested ones get dotted names."""
        from mlflow.entities import Param

        found = [Param(key, str(value)[:LONGEST]) for key, value in _flat(values).items()]
        for start in range(0, len(found), MOST_PARAMS):
            self._do(lambda store, start=start: store.log_batch(self.run_id, params=found[start : start + MOST_PARAMS]))

    def dataset(self, name: str, path: Path, digest: str) -> None:
        """What the stage read: a name, where it lies, and its digest."""
        self._do(lambda store: store.log_inputs(self.run_id, [_dataset(name, path, digest)]))

    def model(self, name: str, path: Path) -> None:
        """A network the stage made: where it lies and its sha256; the file itself stays with DVC."""
        self._do(lambda store: store.set_tag(self.run_id, f"model.{name}.path", str(path)))
        self._do(lambda store: store.set_tag(self.run_id, f"model.{name}.sha256", files.digest(path)))

    def flush(self) -> None:
        """Send what waits."""
        from mlflow.entities import Metric

        rows, self._waiting, self._sent = self._waiting, [], time.monotonic()
        if rows:
            self._do(lambda store: store.log_batch(self.run_id, metrics=[Metric(*row) for row in rows]))

    def _end(self, status: str, seconds: float) -> None:
        """Close the run; its last values and its state go to the parent as well."""
        self.log(seconds=seconds)
        self.flush()
        summary = [(f"{self.stage}.{name}", value, int(time.time() * 1000), 0) for name, value in self._last.items()]
        self._do(lambda store: _log_summary(store, self.parent_id, summary))
        self._do(lambda store: store.set_terminated(self.run_id, status))
        if status == "FAILED":
            self._do(lambda store: store.set_tag(self.parent_id, FAILED_TAG, self.stage))
        self._do(lambda store: store.set_terminated(self.parent_id, _parent_status(store, self.parent_id)))

    def _do(self, action: Callable[[Any], Any]) -> None:
        if self._store is not None:
            try:
                action(self._store)
            except Exception as error:  # whatever MLflow raises, the stage goes on
                self._store = None
                _warn(error)


class Silent(Run):
    """The run that stands for no tracking at all."""

    def log(self, step: int = 0, **metrics: float) -> None: ...
    def figure(self, name: str, path: Path) -> None: ...
    def params(self, values: Mapping[str, Any]) -> None: ...
    def dataset(self, name: str, path: Path, digest: str) -> None: ...
    def model(self, name: str, path: Path) -> None: ...
    def flush(self) -> None: ...
    def _end(self, status: str, seconds: float) -> None: ...


@contextmanager
def stage(
    name: str, domain: str, params_used: Mapping[str, Any], experiment: str = EXPERIMENT, root: Path | None = None
) -> Iterator[Run]:
    """Track one stage: parameters, what `Run` is told, git commit, experiment name, FINISHED or FAILED, and timings.

    `name` may carry the editor ("edit_latent-deltaedit_g"). The parent is the run of the same `dvc` command.
    """
    root = root or params.root()
    run = _started(name, domain, params_used, experiment, root) if _wanted() else Silent()
    start = time.monotonic()
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
        _write_timing(name, domain, root, {"seconds": time.monotonic() - start, **run.parts})
    finally:
        run._end(status, time.monotonic() - start)


def finish_repro(root: Path | None = None) -> str:
    """After `dvc repro`: put each domain's report numbers on the runs of this repro, or say that nothing changed.

    Returns what to print. Called once by the Makefile; cached stages leave no run of their own, so that without it a
    repro that had nothing to do would leave no trace.
    """
    root = root or params.root()
    if not _wanted():
        return "tracking is off"
    started = _ran_file(root)
    try:
        parents = sorted(set(started.read_text().split())) if started.exists() else []
        store, experiment = _store(root), EXPERIMENT
        metrics = _report_metrics(root)
        for parent in parents or [
            _new_parent(store, experiment, "nothing changed", root, {"deltaspace.changed": "no"})
        ]:
            _log_summary(store, parent, metrics)
            store.set_terminated(parent, _parent_status(store, parent))
        started.unlink(missing_ok=True)
    except Exception as error:
        _warn(error)
        return "not tracked"
    return f"tracked in {len(parents)} run{'s' if len(parents) > 1 else ''}" if parents else "nothing changed"


def warm() -> None:
    """Import MLflow and open its database ahead of `finish_repro`."""
    if _wanted():
        with suppress(Exception):  # `finish_repro` says what is wrong
            _store(params.root())


def store_uri(root: Path | None = None) -> str:
    """Where MLflow keeps its runs: $MLFLOW_TRACKING_URI, else mlflow.db in the main checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{params.main_root(root) / 'mlflow.db'}"


def peak_memory() -> int:
    """Bytes of memory this process, or the largest of its finished children, held at its peak."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _wanted() -> bool:
    return os.environ.get("DELTASPACE_TRACKING", "1") != "0"


def _warn(error: BaseException) -> None:
    reason = (str(error).splitlines() or [""])[0][:200]
    print(f"warning: not tracked in MLflow ({type(error).__name__}: {reason})", file=sys.stderr, flush=True)


def _started(name: str, domain: str, used: Mapping[str, Any], experiment: str, root: Path) -> Run:
    try:
        store = _store(root)
        key, label = _pipeline_run()
        parent = _parent(store, experiment, key, label, root)
        tags = {"deltaspace.stage": name, "deltaspace.domain": domain, **_child_tags(parent, f"{name} {domain}", root)}
        number = _experiment(store, experiment, root)
        _close_dead(store, number)
        run_id = store.create_run(number, tags=tags).info.run_id
        run = Run(store, run_id, parent, f"{domain}.{name}")
        run.params(used)
        _remember(root, key, parent)
        return run
    except Exception as error:  # MLflow is a window, not a wall
        _warn(error)
        return Silent()


def _store(root: Path) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import logging

    from filelock import FileLock
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with FileLock(_tracking_folder(root) / "store.lock", timeout=120):  # two processes must not both make the database
        client = MlflowClient(store_uri(root))
        client.search_experiments(max_results=1)
    return client


def _tracking_folder(root: Path) -> Path:
    folder = params.main_root(root) / ".cache" / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _experiment(store: Any, name: str, root: Path) -> str:
    found = store.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (params.main_root(root) / "mlruns").as_uri()
    return store.create_experiment(name, artifact_location=artifacts)


def _parent(store: Any, experiment: str, key: str, label: str, root: Path) -> str:
    """The parent run of this pipeline run: the one with this key, made by whichever stage comes first."""
    from filelock import FileLock

    with FileLock(_tracking_folder(root) / "parent.lock", timeout=120):
        number = _experiment(store, experiment, root)
        found = store.search_runs([number], f"tags.`deltaspace.key` = '{key}'", max_results=1)
        if found:
            store.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        return _new_parent(
            store, experiment, label, root, {"deltaspace.key": key, PID_TAG: key.split("#")[1].split("-")[0]}
        )


def _parent_status(store: Any, parent: str) -> str:
    return "FAILED" if FAILED_TAG in store.get_run(parent).data.tags else "FINISHED"


def _close_dead(store: Any, number: str) -> None:
    """Mark as KILLED what says it runs while its process is gone."""
    for run in store.search_runs([number], "attributes.status = 'RUNNING'", max_results=100):
        pid = run.data.tags.get(PID_TAG, "")
        if pid.isdigit() and not files.alive(int(pid)):
            store.set_terminated(run.info.run_id, "KILLED")


def _new_parent(store: Any, experiment: str, label: str, root: Path, tags: Mapping[str, str]) -> str:
    number = _experiment(store, experiment, root)
    return store.create_run(number, run_name=label, tags={**tags, **_common_tags(root)}).info.run_id


def _child_tags(parent: str, label: str, root: Path) -> dict[str, str]:
    return {"mlflow.parentRunId": parent, "mlflow.runName": label, PID_TAG: str(os.getpid()), **_common_tags(root)}


def _common_tags(root: Path) -> dict[str, str]:
    tags = {
        "mlflow.source.git.commit": _commit(root),
        "mlflow.source.name": "deltaspace",
        "mlflow.source.type": "LOCAL",
    }
    if name := os.environ.get("DVC_EXP_NAME"):
        tags |= {"dvc.exp": name, "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV", "")}
    return {key: value for key, value in tags.items() if value}


def _commit(root: Path) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=20, check=False
        )
        return told.stdout.strip() if told.returncode == 0 else ""
    return ""


def _pipeline_run() -> tuple[str, str]:
    """(key, label) of the `dvc` command above this process; a stage run by hand stands for itself."""
    import psutil

    kind, above = "by hand", psutil.Process()
    with suppress(psutil.Error):
        for process in above.parents():
            if any(Path(word).name in ("dvc", "dvc.exe") for word in process.cmdline()[:3]):
                kind, above = "repro", process
                break
    start = f"{above.pid}-{int(above.create_time() * 1000)}"
    if name := os.environ.get("DVC_EXP_NAME"):
        return f"{name}@{os.environ.get('DVC_EXP_BASELINE_REV', '')}#{start}", name
    return f"{kind}#{start}", kind


def _ran_file(root: Path) -> Path:
    return _tracking_folder(root) / "repro-runs"


def _remember(root: Path, key: str, parent: str) -> None:
    if key.startswith("repro#"):
        with _ran_file(root).open("a") as list_of_parents:
            list_of_parents.write(f"{parent}\n")


def _report_metrics(root: Path) -> list[tuple[str, float, int, int]]:
    """Every number in reports/<domain>/summary.json."""
    rows, now = [], int(time.time() * 1000)
    for path in sorted((root / "reports").glob("*/summary.json")):
        for name, value in _flat(json.loads(path.read_text(encoding="utf-8"))).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                rows.append((f"{path.parent.name}.{name}", float(value), now, 0))
    return rows


def _log_summary(store: Any, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    if rows:
        store.log_batch(run_id, metrics=[Metric(*row) for row in rows[:1000]])


def _dataset(name: str, path: Path, digest: str) -> Any:
    from mlflow.entities import Dataset, DatasetInput

    source = json.dumps({"uri": str(path)})
    return DatasetInput(Dataset(name=name, digest=digest[:36], source_type="local", source=source))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _write_timing(name: str, domain: str, root: Path, seconds: Mapping[str, float]) -> None:
    content = {**{part: round(value, 1) for part, value in seconds.items()}, "peak_rss": peak_memory()}
    try:
        files.write_bytes(Layout(domain, root).timing(name), json.dumps(content, sort_keys=True).encode())
    except InputError as error:  # the stage's outputs are whole already
        print(f"warning: {error}", file=sys.stderr, flush=True)
