"""What the tests of `dfganext score` share. Without Ray they are skipped."""

import importlib.util
import os
import shutil

import pytest
from helpers import add_rule, detector, enter_root, png

from dfganext import scoring
from dfganext.scoring import cluster, stores

if importlib.util.find_spec("ray") is None:  # not imported here: scoring sets variables that Ray reads on import
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A detector and forty images, three of which are broken, one of them by its very name."""
    folder = tmp_path_factory.mktemp("made")
    add_rule(detector(folder / "model", good=True, threshold=0.45))
    detector(folder / "other", good=True, threshold=0.55)
    for index in range(36):
        path = folder / "in" / f"{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index % 2, index))
    (folder / "in" / "empty.jpg").touch()
    (folder / "in" / "truncated.png").write_bytes(png(0, 1)[:300])
    (folder / "in" / "unnamed").write_bytes(png(0, 1))
    (folder / "in" / "1" / os.fsdecode(b"caf\xe9.gif")).write_bytes(b"GIF89a and no more")
    (folder / "in" / "readme.txt").write_text("no image")
    return folder


@pytest.fixture(autouse=True)
def short_settle_time(monkeypatch):
    """The stores of these tests are local disks."""
    monkeypatch.setattr(stores, "SETTLE_SECONDS", 0.1)


@pytest.fixture(scope="session")
def local_ray():
    """A Ray with two cores that the tests share, as starting one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster._set_environment(local=True)
        cluster._start(2)
        import ray

        yield
        ray.shutdown()


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(made, tmp_path / "root")
    return enter_root(tmp_path / "root", monkeypatch)


@pytest.fixture(scope="module")
def scored(made, tmp_path_factory, local_ray):
    """OUT of those images; tests must not change it."""
    out = tmp_path_factory.mktemp("scored") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.chdir(made)
        done = scoring.score(["in"], str(out), "model", workers=2, part_images=12)
    assert done == scoring.Summary(str(out), total=40, kept=0, scored=40, rescored=0, unreadable=3)
    return out
