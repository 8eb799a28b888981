"""Stages run by hand before their inputs exist."""

import os
import shutil
import subprocess
import sys

import pytest

from dfganext import paths
from stages import check


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        ("train_convnext", "artifacts/images/96 holds no resized images; run `dvc repro resize` first."),
        ("train_autoencoder", "artifacts/images/96 holds no resized images; run `dvc repro resize` first."),
        ("promote", "artifacts/split.csv is missing: run `dvc repro` to create it."),
    ],
)
def test_a_stage_without_its_inputs_names_them(root, tmp_path, stage, sentence):
    shutil.copy(root / "params.yaml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr == f"error: {sentence}\n"


def test_a_stop_during_the_imports_of_a_stage_has_no_traceback(root):
    code = "import stages, os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stderr == "stopped: run the same command again to go on\n" and done.returncode != 0


@pytest.mark.parametrize(
    ("content", "stays"), [('{"read": {}, "write": {}}', True), ('{"read": {"a', False), ("", False)]
)
def test_a_damaged_lock_of_dvc_is_removed(tmp_path, monkeypatch, content, stays):
    monkeypatch.chdir(tmp_path)
    paths.DVC_LOCK.parent.mkdir(parents=True)
    paths.DVC_LOCK.write_text(content)
    check.remove_damaged_lock()
    assert paths.DVC_LOCK.exists() == stays
