"""`dvc repro`, killed at random moments and started again, ends as if nothing had happened."""

import random
from pathlib import Path

import pytest

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
    seconds = []
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
    RESULTS.parent.mkdir(exist_ok=True)
    moments = " ".join(f"{one:.1f}" for one in seconds)
    RESULTS.write_text(f"what,value\nkills,20\nclones,{clones}\nseconds after which a run was killed,{moments}\n")


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
