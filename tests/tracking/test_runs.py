import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import enter_root, free_port
from processes import run_at_once

from dfganext import files, paths, settings
from dfganext.errors import UserError
from dfganext.tracking import processes, runs, store, view


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The root that the tests of this module share."""
    return tmp_path_factory.mktemp("a root")


@pytest.fixture
def workspace(shared, enter_root_with_store):
    return enter_root_with_store(shared)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    return enter_root(tmp_path / "a root", monkeypatch)


@pytest.fixture
def under_dvc(monkeypatch, request):
    """As if DVC had started this process: all stages of one test belong to one execution."""
    monkeypatch.setenv("DVC_STAGE", "any")
    monkeypatch.setenv("DVC_EXP_NAME", re.sub(r"\W+", "-", request.node.name))


def run_of(run_id):
    return store.connect()[0].get_run(run_id)


def parents():
    client, experiment = store.connect()
    return client.search_runs([experiment], "tags.execution != ''")


def test_runs_and_artifacts_are_stored_at_the_root(workspace, shipped):
    (workspace / "figure.txt").write_text("x")
    with runs.stage_run("subsample", shipped) as run:
        run.log_metrics({"loss": 0.5}, step=1)
        run.log_metrics({"loss": 0.25}, step=2)
        run.log_key_metrics({"accuracy": 0.75})
        run.log_artifact("figure.txt", folder="figures")
        run.set_tags({"note": 3})
        run.set_key_tags({"promotion": "refused"})
    stage, parent = run_of(run.id), run_of(run.parent_id)
    assert (workspace / "mlflow.db").is_file()
    assert Path(stage.info.artifact_uri).is_relative_to(workspace / "mlruns")
    assert (Path(stage.info.artifact_uri) / "figures" / "figure.txt").read_text() == "x"
    assert stage.data.metrics == {"loss": 0.25, "accuracy": 0.75}
    assert parent.data.metrics == {"accuracy": 0.75}
    assert stage.data.tags["stage"] == "subsample"
    assert stage.data.tags["note"] == "3" and "note" not in parent.data.tags
    assert stage.data.tags["promotion"] == parent.data.tags["promotion"] == "refused"
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params["loss"] == shipped.loss
    assert parent.data.params["subsample.per_class"] == "null"
    assert parent.data.tags["mlflow.note.content"] == "convnext_tiny, random weights, 96 px, loss ce, seed 20"
    assert set(parent.data.params) == set(settings.flatten(shipped))
    assert stage.info.status == parent.info.status == "FINISHED"


def test_the_experiment_opens_in_the_view_for_models(workspace):
    client, experiment = store.connect()
    tags = client.get_experiment(experiment).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "One parent run per execution" in tags["mlflow.note.content"]
    saved = json.loads(tags[f"mlflow.sharedViewState.{view.VIEW}"])
    assert saved["name"] and saved["updatedAt"] >= saved["createdAt"] > 1.7e12  # in milliseconds
    assert "params.`loss`" in json.loads(saved["state"])["selectedColumns"]


def test_stages_of_one_execution_share_a_parent(workspace, shipped, under_dvc, monkeypatch):
    with runs.stage_run("one", shipped) as one:
        assert run_of(one.parent_id).info.status == "RUNNING"
    with runs.stage_run("two", shipped) as two:
        assert run_of(one.parent_id).info.status == "RUNNING"
    monkeypatch.setenv("DVC_EXP_NAME", "quick-fox")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    with runs.stage_run("one", shipped) as other:
        pass
    monkeypatch.delenv("DVC_STAGE")
    with runs.stage_run("one", shipped) as by_hand:
        pass
    assert one.parent_id == two.parent_id
    assert len({one.parent_id, other.parent_id, by_hand.parent_id}) == 3
    parent = run_of(other.parent_id)
    assert parent.info.run_name == "quick-fox"
    assert parent.data.tags["dvc.experiment"] == "quick-fox"
    assert parent.data.tags["dvc.baseline"] == "abc"


EXECUTION = """
import dfganext.tracking.runs
print(dfganext.tracking.runs._execution_id())
"""


@pytest.mark.slow
def test_the_stages_of_one_dvc_process_are_one_execution(tmp_path, monkeypatch):
    """Two simultaneous `dvc` are two executions. A stage's process may be a direct child of DVC or have others in between."""
    (tmp_path / "stage.py").write_text(EXECUTION)
    stage = f"'{sys.executable}' '{tmp_path}/stage.py'"
    dvc = tmp_path / "dvc"
    dvc.write_text(f'#!/bin/sh\n{stage}\n/bin/sh -c "{stage}; true"\n')
    dvc.chmod(0o755)
    monkeypatch.setenv("DVC_STAGE", "any")
    running = [subprocess.Popen([dvc], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].split() for process in running]
    assert [len(ids) for ids in printed] == [2, 2]
    assert [len(set(ids)) for ids in printed] == [1, 1] and printed[0] != printed[1]


@pytest.mark.parametrize(("raised", "status"), [(UserError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_failure_is_recorded_and_not_overwritten(workspace, shipped, under_dvc, raised, status):
    with pytest.raises(type(raised)), runs.stage_run("one", shipped, makes=["made.txt"]) as run:
        Path("made.txt").write_text("kept")
        raise raised
    assert run_of(run.id).info.status == run_of(run.parent_id).info.status == status
    assert "made.made.txt" not in run_of(run.id).data.tags
    assert Path("made.txt").read_text() == "kept"
    with runs.stage_run("independent", shipped) as later:
        pass
    assert run_of(later.id).info.status == "FINISHED"
    assert run_of(run.parent_id).info.status == status


def test_an_experiment_of_any_name(workspace, shipped, under_dvc, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", 'it\'s "mine"')
    with runs.stage_run("one", shipped) as first:
        pass
    with runs.stage_run("two", shipped) as second:
        pass
    assert first.parent_id == second.parent_id
    assert run_of(first.parent_id).data.tags["dvc.experiment"] == 'it\'s "mine"'


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_whose_name_cannot_be_in_an_address_is_refused(tmp_path, monkeypatch, shipped, name):
    enter_root(tmp_path / name, monkeypatch)
    with pytest.raises(UserError, match="rename the folder"), runs.stage_run("one", shipped):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_lock_file_that_cannot_be_written_is_explained(empty, shipped):
    (empty / "mlflow.db.setup.lock").mkdir()
    with pytest.raises(UserError, match="make its folder writable"), runs.stage_run("one", shipped):
        pass


KILLED = """
import itertools, os, signal, sys
from dfganext import settings
from dfganext.tracking import runs, store

def execution(calls_before_the_kill):
    os.environ |= {"DVC_STAGE": "any", "DVC_EXP_NAME": f"killed-{calls_before_the_kill}"}
    calls = itertools.count()
    of_client = store.Client.__getattr__

    def kill_or_call(client, name):
        if name in ("create_run", "update_run", "set_terminated") and next(calls) == calls_before_the_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return of_client(client, name)

    store.Client.__getattr__ = kill_or_call
    for stage in ("one", "two"):
        with runs.stage_run(stage, settings.load_settings(sys.argv[1])):
            pass

for calls_before_the_kill in itertools.count():
    child = os.fork()
    if not child:
        execution(calls_before_the_kill)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        break
print(calls_before_the_kill)
"""


@pytest.mark.slow
def test_no_run_stays_running_whenever_an_execution_is_killed(empty, shipped, root):
    """Before each change of a run's status in an execution of two stages, which has four such changes in each stage."""
    (kills,) = run_at_once(KILLED, [[str(root / "params.yaml")]], empty)
    assert int(kills) >= 8
    client, experiment = store.connect()
    with runs.stage_run("one", shipped) as alive:
        statuses = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
        assert statuses.pop(alive.id) == statuses.pop(alive.parent_id) == "RUNNING"
        assert sorted(set(statuses.values())) == ["FINISHED", "KILLED"]
        assert run_of(alive.id).info.status == "RUNNING"


def test_a_run_that_ends_while_killed_runs_are_looked_for_is_not_one(empty, shipped, monkeypatch):
    """Its process has ended too, after it had closed the run."""
    client, experiment = store.connect()
    gone = {"process.owner": processes.owner(), "process": "1 0"}
    ended, killed = (client.create_run(experiment, tags=gone).info.run_id for _ in range(2))
    search = store.paginate

    def then_one_ends(*arguments, **options):
        found = search(*arguments, **options)
        client.set_terminated(ended, "FINISHED")
        return found

    monkeypatch.setattr(store, "paginate", then_one_ends)
    with runs.stage_run("one", shipped):
        pass
    assert (run_of(ended).info.status, run_of(killed).info.status) == ("FINISHED", "KILLED")


def test_processes_that_have_ended():
    here = processes.tags()
    assert not processes.has_ended(here)
    assert processes.has_ended(here | {"process": "1 0"}), "this process ID, but another process"
    assert not processes.has_ended({"process.owner": "another machine", "process": "1 0"})
    assert not processes.has_ended({})


def test_a_relative_database_is_at_the_root_also_in_a_temporary_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", "/root of the repository")
    monkeypatch.chdir(tmp_path)
    for given, expected in {
        "": "sqlite:////root of the repository/mlflow.db",
        "sqlite:///runs/own.db": "sqlite:////root of the repository/runs/own.db",
        "sqlite:///own.db?timeout=60": "sqlite:////root of the repository/own.db?timeout=60",
        "sqlite:///:memory:": "sqlite:///:memory:",
        "sqlite:///": "sqlite:///",
        "sqlite:////elsewhere/own.db": "sqlite:////elsewhere/own.db",
        "http://host:5000": "http://host:5000",
    }.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert store.tracking_uri() == expected


def test_lineage_is_by_content(workspace, shipped):
    paths.ARTIFACTS.mkdir()
    with runs.stage_run("subsample", shipped, makes=[paths.SPLIT]) as drawn:
        paths.SPLIT.write_text("path,label,split\na,real,train\nb,fake,test\nc,fake,test\n")
    with runs.stage_run("train_convnext", shipped, reads=[paths.SPLIT], makes=[paths.CONVNEXT]) as trained:
        paths.CONVNEXT.mkdir(parents=True)
        (paths.CONVNEXT / "weights").write_text("1")
    with runs.stage_run("evaluate", shipped, reads=[paths.CONVNEXT, "missing"]) as evaluated:
        pass
    (paths.CONVNEXT / "weights").write_text("2")
    with runs.stage_run("evaluate", shipped, reads=[paths.CONVNEXT]) as stranger:
        pass
    split = hashlib.sha256(paths.SPLIT.read_bytes()).hexdigest()
    assert trained.makers == {"artifacts/split.csv": drawn.id}
    assert evaluated.makers == {"artifacts/models/convnext": trained.id}
    assert stranger.makers == {}
    run = run_of(trained.id)
    assert run.data.tags["read.artifacts/split.csv"] == run.data.tags["dataset.sha256"] == split
    assert run.data.tags["made_by.artifacts/split.csv"] == drawn.id
    for one in (run, run_of(trained.parent_id)):
        (data,) = one.inputs.dataset_inputs
        assert data.dataset.name == "split.csv"
        assert split.startswith(data.dataset.digest)
        assert '"num_rows": 3' in data.dataset.profile


def test_sha256_of_a_folder_is_over_its_sorted_lines(tmp_path):
    for name, text in (("b", "2"), ("a/c", "1"), ("a-b", "3")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    lines = "".join(
        f"{name} {hashlib.sha256(text.encode()).hexdigest()}\n"
        for name, text in (("a-b", "3"), ("a/c", "1"), ("b", "2"))
    )
    assert files.sha256_of(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert files.sha256_of(tmp_path / "b") == hashlib.sha256(b"2").hexdigest()


def test_system_metrics_of_a_stage(workspace, shipped, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with runs.stage_run("one", shipped) as run:
        time.sleep(1)
    assert run_of(run.id).data.metrics["system/system_memory_usage_megabytes"] > 0
    assert not run_of(run.parent_id).data.metrics


def test_commit_and_changes(workspace, shipped):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    git("init")
    for name in ("code.py", "dvc.lock"):
        Path(name).write_text("1")
    git("add", "code.py", "dvc.lock")
    git("commit", "-m", "first")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    states = []
    for changed in ("dvc.lock", "code.py"):
        Path(changed).write_text("2")
        with runs.stage_run("one", shipped) as run:
            tags = run_of(run.parent_id).data.tags
        states.append((tags["mlflow.source.git.commit"], tags["git.dirty"]))
    assert states == [(commit, "false"), (commit, "true")]  # dvc.lock is a result
    assert f"{commit[:7]}+" in tags["mlflow.runName"]


def test_the_root_is_dvcs_or_the_nearest_pipeline(tmp_path, monkeypatch):
    enter_root(tmp_path, monkeypatch)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert store.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert store.tracking_uri() == "sqlite:////elsewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert store.tracking_uri() == "http://host:1"


def test_a_server_that_is_down_is_named_without_its_password(tmp_path, monkeypatch, shipped):
    enter_root(tmp_path, monkeypatch)
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=f"http://127.0.0.1:{port}") as error, runs.stage_run("one", shipped):
        pass
    assert "secret" not in str(error.value)


STAGE = """
import sys
from dfganext import settings
from dfganext.tracking import runs, store, view
with runs.stage_run(sys.argv[1], settings.load_settings(sys.argv[2])) as run:
    for step in range(40):
        run.log_metrics({"loss": step}, step)
        run.log_key_metrics({"accuracy": step})
"""


@pytest.mark.slow
def test_four_processes_can_start_at_once(empty, root):
    params = str(root / "params.yaml")
    assert run_at_once(STAGE, [[str(number), params] for number in range(4)], empty) == [""] * 4
    assert len(parents()) == 4
    assert all(run.info.status == "FINISHED" and run.data.metrics["accuracy"] == 39 for run in parents())


PIPELINE = """
stages:
  one:
    cmd: python stage.py one params.yaml && cp params.yaml one.txt
    params: [seed]
    deps: [stage.py]
    outs: [one.txt]
  two:
    cmd: python stage.py two params.yaml && cp one.txt two.txt
    deps: [one.txt]
    outs: [two.txt]
"""


def _end_workers(folder):
    """One of two workers sometimes misses DVC's message to stop and would wait forever."""
    for file in folder.glob("dvc-exp-worker-*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGTERM)


def _logs(folder):
    return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in folder.rglob("*.out"))


@pytest.mark.slow
def test_repro_and_a_queue_of_two_land_in_one_store(empty, root):
    """Real DVC: one parent per execution, in the workspace and in the temporary workspaces of two simultaneous experiments."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def call(line):
        with (empty.parent / "calls.log").open("a") as log:  # no pipe: DVC's workers would keep it open
            subprocess.run(line.split(), check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)

    Path("stage.py").write_text(STAGE)
    Path("dvc.yaml").write_text(PIPELINE)
    Path("params.yaml").write_text((root / "params.yaml").read_text())
    Path(".gitignore").write_text("mlflow.db*\nmlruns\none.txt\ntwo.txt\n")
    for line in ("git init", "git config user.name a", "git config user.email a@b", "dvc init", "git add ."):
        call(line)
    call("git commit -m first")
    call("dvc repro")
    call("git add dvc.lock")
    call("git commit -m second")
    for seed in (1, 2):
        call(f"dvc exp run --queue -n seed-{seed} -S seed={seed}")
    try:
        call("dvc queue start -j 2")
        client, experiment = store.connect()
        for _ in range(360):
            runs = client.search_runs([experiment])
            if len(runs) == 9 and all(run.info.status == "FINISHED" for run in runs):
                break
            time.sleep(0.5)
    finally:
        _end_workers(Path(".dvc/tmp/exps/celery"))
    assert len(runs) == 9, _logs(Path(".dvc/tmp/exps"))  # three parents of two stages each
    seeds = {run.info.run_name.split()[0]: run.data.params["seed"] for run in parents()}
    assert seeds == {"repro": "20", "seed-1": "1", "seed-2": "2"}
    for parent in parents():
        below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        assert sorted(run.data.tags["stage"] for run in below) == ["one", "two"]
        assert all(Path(run.info.artifact_uri).is_relative_to(empty / "mlruns") for run in below)
