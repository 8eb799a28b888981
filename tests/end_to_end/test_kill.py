"""`dvc repro`, killed at random moments and started again, ends as if nothing had happened."""

import random
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from dfganext import paths

pytestmark = [pytest.mark.slow, pytest.mark.stress]

LONGEST = 15.0
"""Seconds of a run before it is killed, at most: a stage of the small settings takes some seconds."""

RESULTS = Path(__file__).parent.parent / "stress" / "results" / "kill.csv"


def files_of(project) -> set[str]:
    """All files but git's, DVC's and MLflow's own, and compiled modules."""
    skipped = (".git/", ".dvc/", "mlruns/", "mlflow.db", "external/")
    names = {path.relative_to(project.folder).as_posix() for path in project.folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(skipped) and "__pycache__" not in name}


def champion_of(project):
    return project.client().get_model_version_by_alias("df-ganext", "champion")


def check(project, undisturbed, changed) -> None:
    """The outputs have the bytes of an undisturbed run, nothing of the stopped runs is left, and git lists these changes."""
    assert project.lock_without_page() == undisturbed.lock_without_page()
    for file in (undisturbed.folder / "metrics").iterdir():
        assert project.read(file.relative_to(undisturbed.folder)) == file.read_text(), file.name
    assert files_of(project) == files_of(undisturbed)
    assert [run.info.run_name for run in project.runs() if run.info.status == "RUNNING"] == []
    assert list(project.versions()) == [1] and int(champion_of(project).version) == 1
    assert sorted(project.run("git", "status", "--porcelain").splitlines()) == sorted(changed)


@pytest.mark.timeout(7200)
def test_repro_ends_with_the_same_bytes(origin, reproduced, tmp_path, stress):
    if not stress:
        pytest.skip("its short form is test_workflow.py::test_a_clone_without_the_cache_makes_the_same_bytes")
    rng = random.Random(12)
    left, clones = 20, 0
    seconds, repaired = [], []
    while left:
        clones += 1
        project = origin.clone(tmp_path / str(clones) / "df-ganext")
        while left:
            seconds.append(rng.uniform(1, LONGEST))
            if not project.killed_after(seconds[-1], "dvc", "repro"):
                break
            left -= 1
        project.run("dvc", "repro")
        check(project, reproduced, reproduced.changed)
        repaired += project.repaired
    RESULTS.parent.mkdir(exist_ok=True)
    moments = " ".join(f"{one:.1f}" for one in seconds)
    cut_off = " ".join(repaired) or "none"
    RESULTS.write_text(
        f"what,value\nkills,20\nclones,{clones}\nseconds after which a run was killed,{moments}\n"
        f"files of DVC that were cut off and repaired as the documents say,{cut_off}\n"
    )


def outputs(project, stage: str) -> list[dict]:
    return yaml.safe_load(project.read("dvc.lock"))["stages"][stage]["outs"]


@pytest.mark.timeout(3600)
def test_training_in_two_processes_ends_with_the_same_bytes(reproduced, tmp_path, stress):
    if not stress:
        pytest.skip("its short form is test_distributed.py::test_two_processes_resume_with_the_same_bytes")
    rng = random.Random(14)
    train = ("dvc", "repro", "train_convnext")
    projects = [reproduced.copy(tmp_path / name / "df-ganext") for name in ("undisturbed", "killed")]
    for project in projects:
        project.change("params.yaml", "  processes: 1 ", "  processes: 2 ")
    undisturbed, project = projects
    undisturbed.run(*train)
    kills = sum(project.killed_after(rng.uniform(3, 12), *train) for _ in range(5))
    project.run(*train)
    assert kills and outputs(project, "train_convnext") == outputs(undisturbed, "train_convnext")
    assert [run.info.run_name for run in project.runs() if run.info.status == "RUNNING"] == []
    assert files_of(project) == files_of(undisturbed)


def kill_below(folder: Path) -> None:
    """SIGKILL to every process that works in a folder, the parents first."""
    for process in sorted(psutil.process_iter(), key=lambda one: one.pid):
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                process.kill()


def queue_state(project, name: str) -> str:
    (line,) = [line for line in project.run("dvc", "queue", "status").splitlines() if f" {name} " in line]
    return line.split()[-1]


@pytest.mark.timeout(3600)
def test_an_experiment_whose_queue_is_killed_is_queued_again(reproduced, tmp_path, stress):
    """As docs/troubleshooting.md says: DVC keeps a killed experiment as running until `dvc queue kill`."""
    if not stress:
        pytest.skip("only in full length: DVC's queue takes minutes")
    projects = [reproduced.copy(tmp_path / name / "df-ganext") for name in ("undisturbed", "killed")]
    for project in projects:
        project.run("dvc", "exp", "run", "--queue", "--name", "first", "-S", "convnext.lr=0.002", "evaluate")
        project.run("dvc", "queue", "start")
    project = projects[1]
    while not project.runs(**{"dvc.experiment": "first"}):  # its first stage has begun
        time.sleep(0.2)
    kill_below(project.folder)
    assert queue_state(project, "first") == "Running", "there is no process left"
    project.run("dvc", "queue", "kill", "first")
    assert queue_state(project, "first") == "Failed"
    project.run("dvc", "queue", "remove", "first")
    project.run("dvc", "exp", "run", "--queue", "--name", "first", "-S", "convnext.lr=0.002", "evaluate")
    project.run("dvc", "queue", "start")
    for each in projects:
        while (state := queue_state(each, "first")) in ("Queued", "Running"):
            time.sleep(2)
        assert state == "Success", each.run("dvc", "queue", "logs", "first")
    locks = []
    for each in projects:
        (reference,) = each.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/first").split()
        locks.append(each.run("git", "show", f"{reference}:dvc.lock"))
    assert locks[0] == locks[1]
    assert [run.info.run_name for run in project.runs() if run.info.status == "RUNNING"] == []
    assert project.run("git", "status", "--porcelain") == ""


def test_a_promotion_that_is_killed_is_made_once(reproduced, tmp_path, stress):
    """promote writes to MLflow, which DVC cannot take back."""
    rng = random.Random(13)
    project = reproduced.copy(tmp_path / "df-ganext")
    project.client().delete_registered_model("df-ganext")
    promote = ("dvc", "repro", "--single-item", "--force", "promote")
    for _ in range(8 if stress else 1):
        if not project.killed_after(rng.uniform(3, 9), *promote):
            break
    project.run(*promote)
    assert len(project.versions()) == 1
    assert champion_of(project).description and project.read(paths.CANDIDATE)
    assert [run.info.run_name for run in project.runs() if run.info.status == "RUNNING"] == []
