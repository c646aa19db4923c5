"""MLflow shows what ran: one parent per pipeline run, one child per stage; without MLflow the stage does not notice."""

import io
import json
import os
import subprocess
import sys

import pytest
from full_disk import full_after

from pipeline.runtime import tracking
from pipeline.runtime.tracking import Silent

pytest.importorskip("mlflow")


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "domains").mkdir()
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path))
    monkeypatch.setenv("DELTASPACE_TRACKING", "1")
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def timing(root, stage):
    return json.loads((root / f"data/tiny/timings/{stage}.json").read_text())


def runs(root):
    from mlflow import MlflowClient

    client = MlflowClient(tracking.store_uri(root))
    number = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    return client, {run.info.run_name: run for run in client.search_runs([number])}


def test_a_pipeline_run_is_one_parent_with_a_child_per_stage(project):
    figure = project / "curve.png"
    figure.write_bytes(b"png")
    with tracking.stage("mapper", "tiny", {"lr": 0.5, "net": {"layers": 4}}) as run:
        for step in range(1200):
            run.log(step=step, loss=1 / (step + 1))
        run.figure("figures", figure)
        run.dataset("codes", project / "data/tiny/codes", "ab" * 32)
        run.model("mapper", figure)
    with pytest.raises(RuntimeError), tracking.stage("relevance", "tiny", {}) as run:
        run.log(step=1, cos=0.5)
        raise RuntimeError("broken")

    client, found = runs(project)
    mapper, relevance, parent = found["mapper tiny"], found["relevance tiny"], found["by hand"]
    assert mapper.info.status == "FINISHED" and relevance.info.status == parent.info.status == "FAILED"
    assert {run.data.tags["mlflow.parentRunId"] for run in (mapper, relevance)} == {parent.info.run_id}
    assert mapper.data.params == {"lr": "0.5", "net.layers": "4"}
    curve = client.get_metric_history(mapper.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in curve) == [(step, 1 / (step + 1)) for step in range(1200)]
    assert parent.data.metrics["tiny.mapper.loss"] == mapper.data.metrics["loss"] == 1 / 1200
    assert parent.data.metrics["tiny.relevance.cos"] == 0.5
    assert [entry.path for entry in client.list_artifacts(mapper.info.run_id, "figures")] == ["figures/curve.png"]
    assert mapper.inputs.dataset_inputs[0].dataset.name == "codes"
    assert len(mapper.data.tags["model.mapper.sha256"]) == 64
    assert timing(project, "mapper")["seconds"] >= 0 and timing(project, "mapper")["peak_rss"] > 10_000_000
    assert not (project / "data/tiny/timings/relevance.json").exists()

    (project / "reports/tiny").mkdir(parents=True)
    (project / "reports/tiny/summary.json").write_text(json.dumps({"reached": 0.5, "clip": {"top": 1}, "none": None}))
    assert tracking.finish_repro(project) == "nothing changed"
    client, found = runs(project)
    unchanged = found["nothing changed"]
    assert unchanged.info.status == "FINISHED" and unchanged.data.metrics == {"tiny.reached": 0.5, "tiny.clip.top": 1.0}

    parent = tracking._parent(client, tracking.EXPERIMENT, "repro#1-1", "repro", project)
    tracking._remember(project, "repro#1-1", parent)
    assert tracking._parent(client, tracking.EXPERIMENT, "repro#1-1", "repro", project) == parent
    assert tracking.finish_repro(project) == "tracked in 1 run"
    assert client.get_run(parent).data.metrics["tiny.reached"] == 0.5
    assert tracking.finish_repro(project) == "nothing changed"

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    number = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    killed = client.create_run(number, tags={tracking.PID_TAG: str(dead.pid)}).info.run_id
    alive = client.create_run(number, tags={tracking.PID_TAG: str(os.getpid())}).info.run_id
    tracking._close_dead(client, number)
    assert client.get_run(killed).info.status == "KILLED" and client.get_run(alive).info.status == "RUNNING"


def test_an_unusable_mlflow_is_one_warning_and_the_stage_goes_on(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with tracking.stage("mapper", "tiny", {"lr": 0.5}) as run:
        run.log(step=1, loss=1.0)
        run.figure("figures", project / "none.png")
    assert timing(project, "mapper")["seconds"] >= 0
    told = capsys.readouterr().err
    assert told.startswith("warning: not tracked in MLflow (") and told.count("\n") == 1


def test_mlflow_failing_in_the_middle_is_one_warning(capsys):
    class Broken:
        def __getattr__(self, name):
            raise OSError("disk is gone\nand more")

    run = tracking.Run(Broken(), "id", "parent", "tiny.mapper")
    run.log(step=1, loss=1.0)
    run.flush()
    run.log(step=2, loss=1.0)
    run._end("FINISHED", 1.0)
    told = capsys.readouterr().err
    assert "disk is gone" in told and told.count("\n") == 1


def test_turned_off_it_writes_only_the_timing(project, monkeypatch):
    monkeypatch.setenv("DELTASPACE_TRACKING", "0")
    with tracking.stage("edit_latent-deltaedit_g", "tiny", {"lr": 0.5}) as run:
        assert isinstance(run, Silent)
        run.log(step=1, loss=1.0)
        run.model("mapper", project / "none")
        with run.part("fit"):
            pass
    assert timing(project, "edit_latent-deltaedit_g")["seconds"] >= 0
    assert timing(project, "edit_latent-deltaedit_g")["fit_seconds"] >= 0
    assert tracking.finish_repro(project) == "tracking is off"
    assert sorted(path.name for path in project.iterdir()) == ["data", "domains", "params.yaml"]


def test_a_full_disk_costs_the_timing_and_not_the_stage(project, monkeypatch):
    monkeypatch.setenv("DELTASPACE_TRACKING", "0")
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    with full_after(4), tracking.stage("mapper", "tiny", {}):
        pass
    assert list((project / "data/tiny/timings").iterdir()) == []
    assert told.getvalue().startswith("warning: cannot write") and told.getvalue().count("\n") == 1


def test_stages_below_one_dvc_command_share_their_parent_and_experiments_are_named(monkeypatch):
    class Process:
        def __init__(self, pid, words, above=()):
            self.pid, self.words, self.above = pid, words, above

        def parents(self):
            return list(self.above)

        def cmdline(self):
            return self.words

        def create_time(self):
            return 1.5

    import psutil

    dvc = Process(40, ["/venv/bin/python", "/venv/bin/dvc", "repro"])
    shell = Process(41, ["/bin/sh", "-c", "python -m stages.mapper"])
    monkeypatch.setattr(psutil, "Process", lambda: Process(42, ["python"], [shell, dvc]))
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert tracking._pipeline_run() == ("repro#40-1500", "repro")
    monkeypatch.setenv("DVC_EXP_NAME", "brave-fox")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    assert tracking._pipeline_run() == ("brave-fox@abc#40-1500", "brave-fox")
    monkeypatch.delenv("DVC_EXP_NAME")
    monkeypatch.setattr(psutil, "Process", lambda: Process(42, ["python"], [shell]))
    assert tracking._pipeline_run() == ("by hand#42-1500", "by hand")


@pytest.mark.parametrize("code", [0, 3])
def test_a_repro_is_told_to_mlflow_once_dvc_is_through_with_it(code, project, tmp_path, monkeypatch, capfd):
    from stages import _repro

    stand_in = tmp_path / "bin" / "dvc"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "dvc $*"\nexit {code}\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    assert _repro.main(["--dry"]) == code
    assert capfd.readouterr().out.splitlines() == ["dvc repro --dry", *(["nothing changed"] if code == 0 else [])]
