"""Clones of the repository as it stands, with settings shrunk until a pipeline takes a minute."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import shrink


class Project:
    """A clone, and the commands a user types in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, fails: bool = False) -> str:
        """Output of a command run at the root, both streams; its success, or its failure, is asserted."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_TR"))}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # most users' Python leaves __pycache__ in the sources
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:  # no pipe: DVC's workers would keep it open
            code = subprocess.run(
                command, cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            ).returncode
            output.seek(0)
            text = output.read()
        assert (code != 0) == fails, f"{command} ended with {code}:\n{text}"
        return text

    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text, encoding="utf-8")

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def clone(self, folder: Path) -> "Project":
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Project(folder)


@pytest.fixture(scope="session")
def origin(root, tmp_path_factory) -> Project:
    """The repository's files, tracked or not yet, as one commit of a repository of its own, settings shrunk."""
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
    project.commit("As it stands, but small")
    return project


@pytest.fixture(scope="session")
def reproduced(origin, tmp_path_factory) -> Project:
    """A fresh clone, without a remote, in which `dvc repro` was run once; tests leave it as they found it."""
    project = origin.clone(tmp_path_factory.mktemp("clone") / "df-ganext")
    project.run("git", "config", "user.name", "A Tester")
    project.run("git", "config", "user.email", "tester@example.org")
    project.output = project.run("dvc", "repro")
    return project
