"""A disk that fills up during a stage, and a checkout that cannot be written: one sentence, and the next `dvc repro` goes on."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dfganext import paths
from tests.end_to_end.conftest import Project
from tests.end_to_end.test_kill import check

pytestmark = [pytest.mark.slow, pytest.mark.stress]

RESULTS = Path(__file__).parent.parent / "stress" / "results" / "disk.csv"

DISK_MIB = 1024
KIB_FREE = (0, 512, 4096)
"""Free space on the full disk: a stage fails in its run, in its first outputs or in its last ones."""

SHORT = [("train_convnext", 512), ("evaluate", 0)]
"""Stages and free KiB of the short form."""

SAID = ("No space left on", "Unable to read RWLock-file")
"""The second is DVC's, where the disk has cut off a file of its own; docs/troubleshooting.md says what to do."""


READ_ONLY = ("Read-only file system", "mlflow.db: it can only be read")


def error_in(output: str, folder: Path) -> str:
    """The first line of the output that names an error, with a short name for the folder."""
    found = (line for line in output.splitlines() if line.lower().startswith("error: "))
    return next(found, "").replace(str(folder), "/df-ganext")


def call(project: Project, *command: str) -> tuple[int, str]:
    """Exit code and output of a command in a project; its output is not written to the disk."""
    done = subprocess.run(
        command,
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small file system of its own, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs"):
        yield place


@pytest.fixture
def read_only(reproduced, tmp_path) -> Iterator[Project]:
    """`reproduced` at a place where nobody can write, root neither."""
    place = tmp_path / "read-only"
    place.mkdir()
    with mounted(place, "--bind", str(reproduced.folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        yield Project(place)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def full(disk: Path, kib_free: int) -> Iterator[None]:
    ballast = disk / "ballast"
    state = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(state.f_bavail * state.f_frsize - kib_free * 1024, 1))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.timeout(3600)
def test_a_full_disk_is_one_sentence_and_the_next_repro_goes_on(reproduced, disk, stress):
    project = reproduced.copy(disk / "df-ganext")
    stages = list(yaml.safe_load(project.read("dvc.yaml"))["stages"])
    failed, problems, outcomes = set(), [], []
    for stage, kib_free in [(stage, kib) for stage in stages for kib in KIB_FREE] if stress else SHORT:
        command = ("dvc", "repro", "--single-item", "--force", stage)
        with full(disk, kib_free):
            code, said = call(project, *command)
        outcomes.append(
            {
                "stage": stage,
                "KiB free": kib_free,
                "exit code": code,
                "said": error_in(said, project.folder) if code else "",
            }
        )
        project.run("python", "-m", "stages.check")  # as `make repro` does first
        if code:
            failed.add(stage)
            project.run(*command)  # as the sentence says
        if "Traceback" in said or (code and not any(words in said for words in SAID)):
            problems.append(f"{stage}, {kib_free} KiB free:\n{said}")
    assert not problems, "\n\n".join(problems)
    # what a small stage writes can fit into the last block of a file
    assert len(failed) > (len(stages) / 2 if stress else 0)
    project.run("dvc", "repro")
    check(project, reproduced, changed=[])
    if stress:
        RESULTS.parent.mkdir(exist_ok=True)
        pd.DataFrame(outcomes).to_csv(RESULTS, index=False)


def test_a_checkout_that_cannot_be_written_is_one_sentence_and_still_predicts(read_only, stress):
    stages = list(yaml.safe_load(read_only.read("dvc.yaml"))["stages"]) if stress else ["check", "evaluate"]
    for command in (["dvc", "repro"], *(["python", "-m", f"stages.{stage}"] for stage in stages)):
        code, said = call(read_only, *command)
        error = error_in(said, read_only.folder)
        assert code and any(words in error for words in READ_ONLY) and "Traceback" not in said, f"{command}:\n{said}"
    image = next((read_only.folder / paths.RAW).rglob("*.jpg"))
    rows = read_only.run("dfganext", "predict", "--json", str(image))
    assert f'"path": "{image}"' in rows and '"error": null' in rows
