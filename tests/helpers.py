"""Shared by several test modules: an empty root, tiny detectors of known quality, images, a logged evaluation, a free port, a
served model."""

import csv
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfganext import images, paths, settings
from dfganext.data import manifest
from dfganext.labels import NAMES
from dfganext.models import classifier


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url: str) -> bool:
    """Whether a server answers with status 200."""
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@contextmanager
def serving(
    words: Sequence[str], port: int, folder: Path, programs: Path = Path(sys.executable).parent, **variables: str
) -> Iterator[subprocess.Popen]:
    """The process of `mlflow models serve ...`, once it answers; it is ended at the end, unless it has ended before.

    Args:
        words: the command.
        folder: where it runs; server.log in it is its log.
        programs: the folder of its Python.
        variables: of its environment.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    kept |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **variables}
    log = folder / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            words, cwd=folder, env=kept, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until = time.monotonic() + 180
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def enter_root(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the working directory and the root of a workflow that has no MLflow store yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").touch()
    patch.chdir(folder)
    return folder


def detector(folder: Path, good: bool, threshold: float = 0.5, architecture: str = "test_convnext") -> Path:
    """Write weights, config and operating point of a tiny untrained classifier to `folder`.

    On `faces`, the ROC AUC of the good one is well above 0.5. The other has the opposite logits, so its ROC AUC is below 0.5.
    """
    model, config = classifier.build(architecture, "bce", 32, seed=0)
    head = model.pretrained_cfg["classifier"]
    sign = -1 if good else 1
    state = {name: sign * value if name.startswith(head) else value for name, value in model.state_dict().items()}
    classifier.save(folder, state, config)
    (folder / "operating_point.json").write_text(json.dumps({"threshold": threshold, "temperature": 1.0}))
    return folder


def add_rule(folder: Path, **values: float | None) -> Path:
    """Give the detector in `folder` a rule for decisions, and the features of a few training images."""
    from dfganext.models.folder import FEATURES_FILE
    from dfganext.models.novelty import Neighbours

    model, config = classifier.load(folder)
    pixels = np.stack([config.prepare(images.decode(png(number % 2, number))) for number in range(12)])
    Neighbours.of(classifier.predict(model, config, pixels).features).save(folder / FEATURES_FILE)
    point = folder / "operating_point.json"
    rule = {"max_error": 0.05, "real_up_to": 0.4, "fake_above": 0.5, "novel_above": 2.0} | values
    point.write_text(json.dumps(json.loads(point.read_text()) | {"decision": rule}))
    return folder


def png(label: int, seed: int) -> bytes:
    """A PNG of random pixels, darker for label 1 (fake)."""
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8) // (1 + label)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def faces(root: Path, validation: int = 20, drawn: int = 0) -> None:
    """Write split.csv, manifest.csv and raw/: per class `validation` images for validation, one to train and one to test.

    Another value of `drawn` rotates the split, so that a training image becomes a validation image.
    """
    rows, manifest_rows = [], []
    for label, name in enumerate(NAMES):
        (root / "raw" / name).mkdir(parents=True, exist_ok=True)
        for index in range(validation + 2):
            path, data = f"{name}/{index}.png", png(label, index)
            (root / "raw" / path).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            split = {0: "train", 1: "test"}.get((index - drawn) % (validation + 2), "validation")
            rows.append([path, name, split, sha256, len(rows)])
            manifest_rows.append({"path": path, "label": name, "sha256": sha256, **hashes(label, index)})
    with (root / "split.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split", "sha256", "group"], *rows])
    defaults = dict.fromkeys(manifest.TYPES, "0")
    with (root / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(manifest.TYPES))
        writer.writeheader()
        writer.writerows(defaults | row for row in manifest_rows)


def hashes(label: int, index: int) -> dict[str, str]:
    """Random perceptual hashes: those of different images are far apart."""
    digits = np.random.default_rng([label, index]).bytes(64).hex()
    return {"phash": digits[:64], "phash_mirrored": digits[64:]}


def promotion_settings(**changes: Any) -> settings.Promote:
    """Settings that promote the tiny detectors by ROC AUC, on at least two images of each class."""
    values = {
        "metric": "roc_auc",
        "min_images": 2,
        "architectures": ("test_convnext",),
        "precision": "float32",
        "engine": "torch",
    }
    return settings.Promote(**values | changes)


def promote(
    name: str,
    run_id: str,
    near_duplicate_bits: int = 8,
    tags: dict[str, str] | None = None,
    device: Any = None,
    **changes: Any,
):
    """Promote the detector in the folder `name`, with `faces` in the working directory as data."""
    from dfganext.tracking import promotion

    data = promotion.Data.read(Path("split.csv"), Path("manifest.csv"), Path("raw"), near_duplicate_bits)
    folder = Path(name)
    chosen = promotion_settings(**changes)
    return promotion.promote(folder, folder / "operating_point.json", data, chosen, run_id, tags, device)


def log_evaluation(values: settings.Settings, split: str = "a") -> str:
    """Log a run of the stage `evaluate` with a one-image split and its outputs, at the working directory; returns its ID."""
    from dfganext.tracking import lineage, runs

    for path in (paths.SPLIT, paths.PREDICTIONS, paths.EVALUATE_METRICS):
        path.parent.mkdir(parents=True, exist_ok=True)
    paths.SPLIT.write_text(f"path,label,split,sha256,group\n{split}.png,real,test,0,0\n")
    paths.PREDICTIONS.write_text("path,label,group,logit,argmax,reconstruction_error\n1,1,1,1,1,1\n")
    paths.EVALUATE_METRICS.write_text(json.dumps({"convnext": {"accuracy": 0.5}}))
    with runs.stage_run("evaluate", values, reads=[paths.SPLIT]) as run:
        run.set_tags(lineage.provenance())
        run.log_artifact(paths.EVALUATION, "evaluation")
        run.log_artifact(paths.EVALUATE_METRICS, "evaluation")
    return run.id


SMALL = {
    "min_images": "2",
    "per_class": "60",
    "architecture": "test_convnext",
    "size": "32",
    "epochs": "2",
    "architectures": "[test_convnext]",
    "near_duplicate_bits": "8",
    "first": "{size: 32, threshold: 0.0035}",
    "second": "{size: 16, threshold: 0.0025}",
    "faithfulness": "2",
}
"""Values with which the whole pipeline takes about a minute."""


def shrink(params: str) -> str:
    """The text of params.yaml with the values of SMALL."""
    for key, value in SMALL.items():
        params, count = re.subn(rf"^(  {key}: ).*$", rf"\g<1>{value}", params, flags=re.MULTILINE)
        assert count, f"params.yaml has no {key}"
    return params
