"""Checkpoints: found by what decides how training goes and by nothing else; what nobody goes on with is removed."""

import ast
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CPU, striped

import dfganext
from dfganext.data.arrays import Images
from dfganext.training import autoencoder, checkpoints, classifier

PACKAGE = Path(dfganext.__file__).parent


def place(work: Path, inputs=None, module=classifier) -> Path:
    """The checkpoint's file."""
    found = checkpoints.resumable(work, "m", inputs or {}, module.MODULES, module.LIBRARIES)
    with found as checkpoint:
        return checkpoint


def test_kept_after_a_stop_and_removed_after_the_end(tmp_path):
    def run(lr):
        return checkpoints.resumable(tmp_path, "m", {"lr": lr}, (), ())

    with pytest.raises(KeyboardInterrupt), run(1) as one:
        one.write_text("half")
        raise KeyboardInterrupt
    with run(2) as other:
        assert other != one
    with run(1) as again:
        assert again == one and one.read_text() == "half"
        checkpoints.partial(one).write_text("cut short")
    assert list(one.parent.iterdir()) == []


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package's source files, which `checkpoints` takes for the package."""
    folder = tmp_path / "package"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(dfganext, "__file__", str(folder / "__init__.py"))
    return folder


@pytest.mark.parametrize("module", [classifier, autoencoder])
def test_found_again_after_a_change_of_other_code(package, tmp_path, module):
    before = place(tmp_path, module=module)
    changed = set()
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        if place(tmp_path, module=module) != before:
            changed.add(file.relative_to(package).as_posix())
        file.write_bytes(content)
    assert changed == set(module.MODULES)


def test_found_by_the_versions_of_libraries(tmp_path, monkeypatch):
    before = place(tmp_path)
    version = checkpoints.version
    for library in (*classifier.LIBRARIES, "mlflow", "pytest"):
        monkeypatch.setattr(checkpoints, "version", lambda name, new=library: "9" if name == new else version(name))
        assert (place(tmp_path) == before) is (library in ("mlflow", "pytest"))


HARMLESS = {
    "__init__.py": "empty",
    "data/arrays.py": "reads the arrays, which are hashed as they were read",
    "data/split.py": "only names the splits",
    "errors.py": "words",
    "files.py": "writes",
    "images.py": "makes the arrays, which are hashed",
    "settings.py": "reads the settings, which are hashed as they were read",
    "training/checkpoints.py": "keeps what training hands it",
}


def imports_of(file: Path) -> set[Path]:
    """Source files of the package that a source file imports, also inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = {PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in names if name.startswith("dfganext.")}
    return {path for path in found if path.is_file()}


@pytest.mark.parametrize("module", [classifier, autoencoder])
def test_all_code_of_training_decides_or_is_harmless(module):
    reached, new = set(), {Path(module.__file__)}
    while new:
        reached |= new
        new = set().union(*map(imports_of, new)) - reached
    names = {path.relative_to(PACKAGE).as_posix() for path in reached}
    needless = {"training/distributed.py", "models/classifier.py"} if module is autoencoder else set()
    assert names - HARMLESS.keys() - needless == set(module.MODULES)


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


def test_the_classifiers_checkpoint_is_found_by_what_training_reads(convnext, tmp_path):
    def key(train=TRAIN, validation=VALIDATION, settings=convnext, loss="ce", seed=1, machine=CPU):
        return classifier.inputs_of(train, validation, settings, loss, seed, machine)

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


def test_the_autoencoders_checkpoint_is_found_by_what_training_reads(shipped):
    def key(train=TRAIN, validation=VALIDATION, settings=shipped.autoencoder, seed=1, machine=CPU):
        return autoencoder.inputs_of(train, validation, settings, seed, machine)

    first = key()
    assert key(settings=dataclasses.replace(shipped.autoencoder, threshold=1.0)) == first
    fakes_alone = np.flatnonzero(TRAIN.labels == 1)[0], np.flatnonzero(VALIDATION.labels == 1)[0]
    assert key(changed(TRAIN, fakes_alone[0]), changed(VALIDATION, fakes_alone[1])) == first
    others = [
        key(train=changed(TRAIN, 0)),
        key(validation=changed(VALIDATION, 2)),
        key(settings=dataclasses.replace(shipped.autoencoder, epochs=9)),
        key(seed=2),
        key(machine=dataclasses.replace(CPU, device="cuda")),
    ]
    assert first not in others


def left(folder: Path, name: str, days: float) -> Path:
    """What a stopped run left behind so many days ago."""
    for suffix in (".pt", ".partial", ".lock"):
        file = folder / f"{name}{suffix}"
        file.touch()
        os.utime(file, (time.time() - days * 86400,) * 2)
    return folder / f"{name}.pt"


def test_what_stopped_runs_left_is_removed_after_a_week(tmp_path):
    own = place(tmp_path)
    folder = own.parent
    recent, old = left(folder, "m-recent", 6), left(folder, "other-old", 8)
    left(folder, own.stem, 30)
    lone = left(folder, "m-ended", 8).with_suffix(".lock")
    for suffix in (".pt", ".partial"):
        lone.with_suffix(suffix).unlink()
    with (
        pytest.raises(KeyboardInterrupt),
        checkpoints.resumable(tmp_path, "m", {}, classifier.MODULES, classifier.LIBRARIES) as checkpoint,
    ):
        assert checkpoint == own and own.is_file(), "its own is used, however old"
        raise KeyboardInterrupt
    expected = {path.with_suffix(suffix) for path in (recent, own) for suffix in (".pt", ".partial", ".lock")}
    assert set(folder.iterdir()) == expected and old not in expected


def test_what_another_process_uses_is_never_removed(tmp_path):
    folder = place(tmp_path).parent
    used = left(folder, "m-used", 30)
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('locked', flush=True); input()"
    command = [sys.executable, "-c", code, str(used.with_suffix(".lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        place(tmp_path)
        assert used.is_file() and checkpoints.partial(used).is_file()
        other.communicate("\n")
    place(tmp_path)
    assert list(folder.iterdir()) == []
