"""`make data FROM=...`: checks first, then puts images in the place of data/; what is nowhere else is never deleted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import png

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory, root):
    """A DVC repository whose data/ is an import of samples/, with the shipped settings."""
    folder = tmp_path_factory.mktemp("own") / "workspace"
    images(folder / "samples", 2)
    shutil.copyfile(root / "params.yaml", folder / "params.yaml")
    for line in ("git init --quiet", "git config user.name a", "git config user.email a@b", "dvc init --quiet"):
        subprocess.run(line.split(), cwd=folder, check=True)
    subprocess.run(["dvc", "import-url", "--quiet", "samples", "data"], cwd=folder, check=True)
    # as shipped: a fresh clone imports the sample
    subprocess.run(["dvc", "unfreeze", "data.dvc"], cwd=folder, check=True)
    return folder


@pytest.fixture
def workspace(repository, tmp_path):
    """A copy of `repository`."""
    return shutil.copytree(repository, tmp_path / "workspace")


@pytest.fixture
def mine(tmp_path):
    return images(tmp_path / "mine", 3)


def images(folder: Path, count: int) -> Path:
    for label, name in enumerate(("real", "fake")):
        (folder / "set" / name).mkdir(parents=True)
        for number in range(count):
            (folder / "set" / name / f"{number}.png").write_bytes(png(label, 100 * count + number))
    return folder


def replace(workspace, source, fails=False):
    done = subprocess.run(
        [sys.executable, "-m", "dfganext.data.own", str(source)],
        cwd=workspace,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_take_the_place_of_the_sample_and_of_other_images(workspace, mine, tmp_path):
    said = replace(workspace, mine)
    assert "3 real files, 3 fake files" in said and "make repro" in said and "random weights" in said
    assert content(workspace / "data") == content(mine)
    assert "samples" not in (workspace / "data.dvc").read_text()
    assert subprocess.run(["dvc", "status", "--quiet", "data.dvc"], cwd=workspace).returncode == 0
    others = images(tmp_path / "others", 4)
    replace(workspace, others)
    assert content(workspace / "data") == content(others)


def test_links_to_folders_are_left_out(workspace, mine):
    before = content(mine)
    (mine / "set" / "again").symlink_to(mine)
    replace(workspace, mine)
    assert content(workspace / "data") == before


def test_the_sample_comes_back(workspace, mine):
    subprocess.run("git add --all && git commit --quiet -m sample", shell=True, cwd=workspace, check=True)
    replace(workspace, mine)
    subprocess.run("git checkout --quiet data.dvc && dvc repro --quiet data.dvc", shell=True, cwd=workspace, check=True)
    assert content(workspace / "data") == content(workspace / "samples")


@pytest.mark.parametrize("source", ["", "nowhere", "samples/set/real", "data", ".", ".."])
def test_a_wrong_folder_changes_nothing(workspace, source):
    before = content(workspace / "data"), (workspace / "data.dvc").read_text()
    said = replace(workspace, source, fails=True)
    assert said.startswith("error: ") and said.count("\n") == 1
    assert (content(workspace / "data"), (workspace / "data.dvc").read_text()) == before


@pytest.mark.parametrize("tracked", [True, False])
def test_files_that_are_nowhere_else_are_kept(workspace, mine, tracked):
    (workspace / "data" / "set" / "real" / "only-here.png").write_bytes(png(0, 999))
    if not tracked:
        (workspace / "data.dvc").unlink()
    said = replace(workspace, mine, fails=True)
    assert "data/ holds files that DVC does not have" in said
    assert (workspace / "data" / "set" / "real" / "only-here.png").is_file()


def test_archives_are_taken(workspace, tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    for name in ("real", "fake"):
        shutil.make_archive(str(folder / name), "zip", images(tmp_path / name, 1) / "set" / name)
    assert "2 packed files" in replace(workspace, folder)
    assert sorted(content(workspace / "data")) == ["fake.zip", "real.zip"]
