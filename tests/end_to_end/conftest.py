"""One commit of the repository with small settings, one clone of it in which `dvc repro` ran once, and copies of that clone."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from filelock import FileLock
from helpers import shrink
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from voluptuous import Invalid

from dfganext import paths


class Project:
    """A clone, and the commands that a user types in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repaired: list[str] = []

    @staticmethod
    def environment() -> dict[str, str]:
        """Of the commands that a user types."""
        found = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_TR"))}
        found.pop("PYTHONDONTWRITEBYTECODE", None)  # most users' Python leaves __pycache__ in the sources
        return found | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"}

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command at the root and return its output, both streams. Asserts that it succeeds, or that it fails."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:  # no pipe: DVC's workers would keep it open
            code = subprocess.run(
                command, cwd=self.folder, env=self.environment(), stdout=output, stderr=subprocess.STDOUT
            ).returncode
            output.seek(0)
            text = output.read()
        assert (code != 0) == fails, f"{command} ended with {code}:\n{text}"
        return text

    def killed_after(self, seconds: float, *command: str) -> bool:
        """Run a command and kill it, with all its child processes; False if it ended before."""
        with (self.folder.parent / "killed.log").open("w+") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self.repair()
                return True
            log.seek(0)
            assert code == 0, log.read()
            return False

    def repair(self) -> None:
        """Files that DVC writes in place, where a kill has cut them off: as docs/troubleshooting.md says."""
        if self.lock_is_damaged():
            self.restore_lock()
            self.repaired.append("dvc.lock")
        rwlock = self.folder / ".dvc/tmp/rwlock"
        try:
            json.loads(rwlock.read_text() if rwlock.exists() else "{}")
        except json.JSONDecodeError:
            self.run("python", "-m", "stages.check")
            self.repaired.append("rwlock")

    def lock_is_damaged(self) -> bool:
        """Whether dvc.lock, which DVC writes in place, is cut off: DVC cannot read it, or it lacks a stage that is committed."""
        if not (self.folder / "dvc.lock").exists():
            return False
        text = self.read("dvc.lock")
        try:
            stages = COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text)).get("stages", {})
        except (Invalid, yaml.YAMLError):
            return True
        committed = (
            yaml.safe_load(self.run("git", "show", "HEAD:dvc.lock")) if self.lock_is_committed() else {"stages": {}}
        )
        return not text.endswith("\n") or not set(committed["stages"]) <= set(stages)

    def lock_is_committed(self) -> bool:
        return self.run("git", "ls-files", "dvc.lock") != ""

    def restore_lock(self) -> None:
        """As docs/troubleshooting.md says."""
        if self.lock_is_committed():
            self.run("git", "checkout", "dvc.lock")
        else:
            (self.folder / "dvc.lock").unlink()

    def read(self, path: str | Path) -> str:
        return (self.folder / path).read_text(encoding="utf-8")

    def write(self, path: str | Path, text: str) -> None:
        (self.folder / path).write_text(text, encoding="utf-8")

    def change(self, path: str | Path, old: str, new: str) -> str:
        """Replace the first `old` in a file, which must contain it; returns the file's text before."""
        text = self.read(path)
        assert old in text, f"{path} has no {old!r}"
        self.write(path, text.replace(old, new, 1))
        return text

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def clone(self, folder: Path) -> "Project":
        """What `git clone` gives: no DVC cache, no MLflow store."""
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        project = Project(folder)
        project.run("git", "config", "user.name", "A Tester")
        project.run("git", "config", "user.email", "tester@example.org")
        return project

    def client(self) -> mlflow.MlflowClient:
        """Of the project's MLflow store."""
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def runs(self, **tags: str) -> list[Run]:
        """The runs that have these tags, newest first."""
        experiment = self.client().get_experiment_by_name("df-ganext")
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return self.client().search_runs([experiment.experiment_id], condition)

    def parents(self) -> list[Run]:
        """The parent run of each pipeline execution, newest first."""
        return [run for run in self.runs() if "mlflow.parentRunId" not in run.data.tags]

    def versions(self) -> dict[int, ModelVersion]:
        """The registered versions by number."""
        return {int(one.version): one for one in self.client().search_model_versions("name='df-ganext'")}

    def lock_without_page(self) -> dict:
        """The stages in dvc.lock, without the hash of the page, which also shows other evaluations of its MLflow store."""
        stages = yaml.safe_load(self.read("dvc.lock"))["stages"]
        stages["report"]["outs"] = [one for one in stages["report"]["outs"] if one["path"] != str(paths.PAGE)]
        return stages

    def copy(self, folder: Path) -> "Project":
        """The whole workspace: DVC's cache, and an MLflow store whose paths lead into the copy."""
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*"))
        with (
            closing(sqlite3.connect(self.folder / "mlflow.db")) as original,
            closing(sqlite3.connect(folder / "mlflow.db")) as copy,
        ):
            copy.executescript("\n".join(original.iterdump()).replace(str(self.folder), str(folder)))
        return Project(folder)


@pytest.fixture(scope="session")
def origin(root, tmp_path_factory) -> Project:
    """The repository's files, tracked or not yet, as one commit of a new repository, with small settings."""
    folder = tmp_path_factory.mktemp("origin") / "df-ganext"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("needs a git checkout: DVC experiments are commits")
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    project = Project(folder)
    for name in ("dvc.lock", "metrics", "plots"):  # results of the settings as shipped
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    project.write("params.yaml", shrink(project.read("params.yaml")))
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("git", "config", "user.name", "A Tester")
    project.run("git", "config", "user.email", "tester@example.org")
    project.commit("Small settings")
    return project


@pytest.fixture(scope="session")
def reproduced(request, tmp_path_factory, worker_id) -> Project:
    """A copy, for this test process, of a fresh clone in which `dvc repro` ran once and its results were committed.

    `output` is what `dvc repro` printed, `changed` what `git status` listed before the commit. Tests that change more than
    they restore take a copy.
    """
    base = tmp_path_factory.getbasetemp()
    place = base if worker_id == "master" else base.parent  # which all test processes share
    with FileLock(place / "reproduced.lock"):
        printed = place / "reproduced.json"
        if not printed.exists():
            fresh = request.getfixturevalue("origin").clone(place / "reproduced" / "df-ganext")
            output = fresh.run("dvc", "repro")
            changed = fresh.run("git", "status", "--porcelain").splitlines()
            fresh.commit("Results")
            printed.write_text(json.dumps({"output": output, "changed": changed}))
    project = Project(place / "reproduced" / "df-ganext").copy(tmp_path_factory.mktemp("reproduced") / "df-ganext")
    vars(project).update(json.loads(printed.read_text()))
    return project
