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
