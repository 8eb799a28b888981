"""Stages run by hand before their inputs exist."""

import os
import shutil
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train_convnext", "train_autoencoder"])
def test_training_without_images_names_the_stage_that_makes_them(root, tmp_path, stage):
    shutil.copy(root / "params.yaml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr == "error: artifacts/images/96 holds no resized images; run `dvc repro resize` first.\n"


def test_a_stop_during_the_imports_of_a_stage_has_no_traceback(root):
    code = "import stages, os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stderr == "stopped: run the same command again to go on\n" and done.returncode != 0
