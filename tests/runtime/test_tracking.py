"""MLflow shows what ran: one parent per pipeline run, one child per stage; a stage runs the same without MLflow."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from full_disk import full_after

from pipeline.runtime import tracking

pytest.importorskip("mlflow")


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "domains").mkdir()
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path))
    monkeypatch.setenv("DELTASPACE_TRACKING", "1")
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE", tracking.RUN_ID):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def stage(name, params, root):
    return tracking.stage(name, "tiny", params, root, root / f"data/tiny/timings/{name}.json")


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
    with stage("mapper", {"lr": 0.5, "net": {"layers": 4}, "long": "x" * 9000}, project) as run:
        for step in range(1200):
            run.log(step=step, loss=1 / (step + 1))
        run.figure("figures", figure)
    with pytest.raises(RuntimeError), stage("relevance", {}, project) as run:
        run.log(step=1, cos=0.5)
        raise RuntimeError("broken")

    client, found = runs(project)
    mapper, relevance, parent = found["mapper tiny"], found["relevance tiny"], found["by hand"]
    assert mapper.info.status == "FINISHED" and relevance.info.status == parent.info.status == "FAILED"
    assert {run.data.tags["mlflow.parentRunId"] for run in (mapper, relevance)} == {parent.info.run_id}
    assert mapper.data.params.pop("long").startswith("xxx")
    assert mapper.data.params == {"lr": "0.5", "net.layers": "4"}
    curve = client.get_metric_history(mapper.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in curve) == [(step, 1 / (step + 1)) for step in range(1200)]
    assert parent.data.metrics["tiny.mapper.loss"] == mapper.data.metrics["loss"] == 1 / 1200
    assert parent.data.metrics["tiny.relevance.cos"] == 0.5
    assert [entry.path for entry in client.list_artifacts(mapper.info.run_id, "figures")] == ["figures/curve.png"]
    assert timing(project, "mapper")["seconds"] >= 0 and timing(project, "mapper")["peak_rss"] > 10_000_000
    assert not (project / "data/tiny/timings/relevance.json").exists()


def test_a_finished_repro_logs_the_report_to_its_parent_or_that_nothing_changed(project, monkeypatch):
    (project / "reports/tiny").mkdir(parents=True)
    (project / "reports/tiny/summary.json").write_text(json.dumps({"reached": 0.5, "clip": {"top": 1}, "none": None}))
    assert tracking.finish_repro(project, "1-1") == "nothing changed"
    _, found = runs(project)
    unchanged = found["nothing changed"]
    assert unchanged.info.status == "FINISHED" and unchanged.data.metrics == {"tiny.reached": 0.5, "tiny.clip.top": 1.0}

    monkeypatch.setenv("DVC_STAGE", "mapper@tiny")
    monkeypatch.setenv(tracking.RUN_ID, run_id := tracking.new_run_id())
    with stage("mapper", {}, project), stage("relevance", {}, project):
        pass
    assert tracking.finish_repro(project, run_id) == "tracked in MLflow"
    _, found = runs(project)
    parent = found["repro"]
    assert parent.data.metrics["tiny.reached"] == 0.5 and "tiny.mapper.seconds" in parent.data.metrics
    children = [found[name].data.tags["mlflow.parentRunId"] for name in ("mapper tiny", "relevance tiny")]
    assert children == [parent.info.run_id] * 2


def test_runs_of_ended_processes_are_closed(project):
    client = tracking._client(project)
    number = tracking._experiment(client, project)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    killed = client.create_run(number, tags={tracking.PID_TAG: str(dead.pid)}).info.run_id
    alive = client.create_run(number, tags={tracking.PID_TAG: str(os.getpid())}).info.run_id
    tracking._close_dead(client, number)
    assert client.get_run(killed).info.status == "KILLED" and client.get_run(alive).info.status == "RUNNING"


def test_an_unusable_mlflow_is_one_warning_and_the_stage_goes_on(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with stage("mapper", {"lr": 0.5}, project) as run:
        run.log(step=1, loss=1.0)
        run.figure("figures", project / "none.png")
    assert timing(project, "mapper")["seconds"] >= 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: not tracked in MLflow (") and warning.count("\n") == 1


def test_mlflow_failing_in_the_middle_is_one_warning(capsys):
    class Broken:
        def __getattr__(self, name):
            raise OSError("disk is gone\nand more")

    run = tracking.Run(Broken(), "id", "parent", "tiny.mapper")
    run.log(step=1, loss=1.0)
    run.flush()
    run.log(step=2, loss=1.0)
    run.end("FINISHED", 1.0)
    warning = capsys.readouterr().err
    assert "disk is gone" in warning and warning.count("\n") == 1


def test_turned_off_it_writes_only_the_timing(project, monkeypatch):
    monkeypatch.setenv("DELTASPACE_TRACKING", "0")
    with stage("edit_latent-deltaedit_g", {"lr": 0.5}, project) as run:
        run.log(step=1, loss=1.0)
        run.figure("figures", project / "none")
        with run.part("fit"):
            pass
    assert timing(project, "edit_latent-deltaedit_g")["seconds"] >= 0
    assert timing(project, "edit_latent-deltaedit_g")["fit_seconds"] >= 0
    assert tracking.finish_repro(project, "1-1") == "tracking is off"
    assert sorted(path.name for path in project.iterdir()) == ["data", "domains", "params.yaml"]


def test_a_full_disk_costs_the_timing_and_not_the_stage(project, monkeypatch):
    monkeypatch.setenv("DELTASPACE_TRACKING", "0")
    warning = io.StringIO()
    monkeypatch.setattr(sys, "stderr", warning)
    with full_after(4), stage("mapper", {}, project):
        pass
    assert list((project / "data/tiny/timings").iterdir()) == []
    assert warning.getvalue().startswith("warning: cannot write") and warning.getvalue().count("\n") == 1


def test_stages_of_one_pipeline_run_share_its_key(project, monkeypatch):
    code = "from pipeline.runtime import tracking; print(*tracking._pipeline_run())"

    def keys(environment, **options):
        command = [
            sys.executable,
            "-c",
            f"import subprocess, sys; [subprocess.run([sys.executable, '-c', {code!r}]) for _ in '12']",
        ]
        paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
        out = subprocess.run(
            command, env={**os.environ, **paths, **environment}, capture_output=True, text=True, **options
        )
        return set(out.stdout.splitlines())

    by_hand, again = (keys({}, start_new_session=True) for _ in "12")  # as a shell starts each command
    assert len(by_hand) == len(again) == 1 and by_hand != again and "by hand#" in min(by_hand)
    assert keys({tracking.RUN_ID: "7-8", "DVC_STAGE": "mapper"}) == {"repro#7-8 repro"}
    experiment = {"DVC_EXP_NAME": "brave-fox", "DVC_EXP_BASELINE_REV": "abc", "DVC_STAGE": "mapper"}
    (key,) = keys(experiment, start_new_session=True)
    assert key.startswith("brave-fox#") and key.endswith(" brave-fox")


@pytest.mark.parametrize("code", [0, 3])
def test_make_repro_logs_to_mlflow_once_dvc_succeeded(code, project, tmp_path, monkeypatch, capfd):
    from stages import _repro

    stand_in = tmp_path / "bin" / "dvc"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "dvc $*"\ntest -n "$DELTASPACE_RUN_ID" || exit 9\nexit {code}\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    assert _repro.main(["--dry"]) == code
    assert capfd.readouterr().out.splitlines() == ["dvc repro --dry", *(["nothing changed"] if code == 0 else [])]
