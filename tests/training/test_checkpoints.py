"""A checkpoint is found by everything that affects training and by nothing else; abandoned checkpoints are removed."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CPU, striped

from dfganext import paths
from dfganext.data.arrays import Images
from dfganext.training import autoencoder, checkpoints, classifier

DVC_YAML = """
stages:
  train:
    deps: [artifacts/images/32, src/dfganext/loop.py, stages/train.py]
    params:
    - seed
    - artifacts/versions.json: [torch]
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A workspace whose stage `train` declares two source files and torch."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("src/dfganext/loop.py", "src/dfganext/other.py", "stages/train.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / paths.VERSIONS).parent.mkdir()
    (tmp_path / paths.VERSIONS).write_text(json.dumps({"torch": "2", "mlflow": "3"}))
    return tmp_path


def resumable(workspace: Path, **inputs):
    return checkpoints.resumable("train", inputs, workspace)


def path_of(workspace: Path, **inputs) -> Path:
    """The checkpoint's path."""
    with resumable(workspace, **inputs) as checkpoint:
        return checkpoint


def test_kept_after_a_stop_and_removed_after_the_end(workspace):
    with pytest.raises(KeyboardInterrupt), resumable(workspace, lr=1) as one:
        one.write_text("half")
        raise KeyboardInterrupt
    with resumable(workspace, lr=2) as other:
        assert other != one
    with resumable(workspace, lr=1) as again:
        assert again == one and one.read_text() == "half"
        checkpoints.partial(one).write_text("cut short")
    assert list(one.parent.iterdir()) == []


def test_nothing_is_kept_of_a_run_that_stopped_before_its_first_checkpoint(workspace):
    with pytest.raises(KeyboardInterrupt), resumable(workspace, lr=1) as checkpoint:
        raise KeyboardInterrupt
    assert list(checkpoint.parent.iterdir()) == []


def test_found_again_unless_the_stages_code_or_libraries_change(workspace):
    before = path_of(workspace)
    assert before.parent == workspace / ".dfganext" / "checkpoints"
    for file in ("src/dfganext/loop.py", "src/dfganext/other.py", "stages/train.py"):
        (workspace / file).write_text("changed")
        assert (path_of(workspace) == before) is (file == "src/dfganext/other.py")
        (workspace / file).write_text("")
    for versions, same in (({"torch": "2", "mlflow": "4"}, True), ({"torch": "3", "mlflow": "3"}, False)):
        (workspace / paths.VERSIONS).write_text(json.dumps(versions))
        assert (path_of(workspace) == before) is same


def test_works_outside_a_dvc_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert path_of(tmp_path, lr=1) == path_of(tmp_path, lr=1) != path_of(tmp_path, lr=2)


def test_a_failed_write_leaves_the_checkpoint_as_it_was(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "c.pt"
    checkpoints.write(checkpoint, {"epoch": 1})
    with pytest.raises(TypeError):
        checkpoints.write(checkpoint, {"epoch": (value for value in ())})  # generators cannot be pickled
    assert torch.load(checkpoint, weights_only=True) == {"epoch": 1}
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


TRAIN, VALIDATION = striped(12, 0), striped(6, 1)


def changed(images: Images, row: int, renamed: bool = False, label: int | None = None) -> Images:
    pixels, labels = images.pixels.copy(), images.labels.copy()
    if label is not None:
        labels[row] = label
    elif not renamed:
        pixels[row, 3, 3] ^= 1
    paths = [f"elsewhere/{path}" for path in images.paths] if renamed else images.paths
    return Images(pixels, labels, paths, images.groups)


@pytest.fixture
def convnext(shipped, tmp_path):
    torch.save({}, tmp_path / "w.pth")
    return dataclasses.replace(shipped.convnext, weights=str(tmp_path / "w.pth"), precision="float32")


def test_the_classifiers_checkpoint_is_identified_by_the_data_and_settings_of_training(convnext, tmp_path):
    def key(train=TRAIN, validation=VALIDATION, settings=convnext, loss="ce", seed=1, machine=CPU):
        return classifier.training_inputs(train, validation, settings, loss, seed, machine)

    first = key()
    for same in (
        key(train=changed(TRAIN, 0, renamed=True), validation=changed(VALIDATION, 0, renamed=True)),
        key(settings=dataclasses.replace(convnext, processes=2)),
        key(machine=dataclasses.replace(CPU, workers=7)),
    ):
        assert same == first
    augment = dataclasses.replace(convnext.augment, rotation=11)
    others = [
        key(train=changed(TRAIN, 0)),
        key(train=changed(TRAIN, 1, label=0)),
        key(validation=changed(VALIDATION, 5)),
        key(settings=dataclasses.replace(convnext, lr=2e-3)),
        key(settings=dataclasses.replace(convnext, precision="bfloat16")),
        key(settings=dataclasses.replace(convnext, augment=augment)),
        key(loss="bce"),
        key(seed=2),
        key(machine=dataclasses.replace(CPU, device="cuda")),
    ]
    shutil.copy(convnext.weights, tmp_path / "renamed.pth")
    assert key(settings=dataclasses.replace(convnext, weights=str(tmp_path / "renamed.pth"))) == first
    torch.save({"x": torch.zeros(1)}, convnext.weights)
    others.append(key())
    assert first not in others and all(others.count(other) == 1 for other in others)


def test_the_autoencoders_checkpoint_is_identified_by_the_data_and_settings_of_training(shipped):
    def key(train=TRAIN, validation=VALIDATION, settings=shipped.autoencoder, seed=1, machine=CPU):
        return autoencoder.training_inputs(train, validation, settings, seed, machine)

    first = key()
    assert key(settings=dataclasses.replace(shipped.autoencoder, threshold=1.0)) == first
    fakes = np.flatnonzero(TRAIN.labels == 1)[0], np.flatnonzero(VALIDATION.labels == 1)[0]
    assert key(changed(TRAIN, fakes[0]), changed(VALIDATION, fakes[1])) == first
    others = [
        key(train=changed(TRAIN, 0)),
        key(validation=changed(VALIDATION, 2)),
        key(settings=dataclasses.replace(shipped.autoencoder, epochs=9)),
        key(seed=2),
        key(machine=dataclasses.replace(CPU, device="cuda")),
    ]
    assert first not in others


def abandon(folder: Path, name: str, days: float) -> Path:
    """The files of a run that stopped so many days ago."""
    for suffix in (".pt", ".partial", ".lock"):
        file = folder / f"{name}{suffix}"
        file.touch()
        os.utime(file, (time.time() - days * 86400,) * 2)
    return folder / f"{name}.pt"


def test_files_of_stopped_runs_are_removed_after_a_week(workspace):
    own = path_of(workspace)
    folder = own.parent
    recent, old = abandon(folder, "m-recent", 6), abandon(folder, "other-old", 8)
    abandon(folder, own.stem, 30)
    lone = abandon(folder, "m-ended", 8).with_suffix(".lock")
    for suffix in (".pt", ".partial"):
        lone.with_suffix(suffix).unlink()
    with pytest.raises(KeyboardInterrupt), resumable(workspace) as checkpoint:
        assert checkpoint == own and own.is_file(), "its own is used, however old"
        raise KeyboardInterrupt
    expected = {path.with_suffix(suffix) for path in (recent, own) for suffix in (".pt", ".partial", ".lock")}
    assert set(folder.iterdir()) == expected and old not in expected
