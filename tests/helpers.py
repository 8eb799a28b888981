"""What several test modules make: an empty root, tiny detectors whose order is known, images to judge; a port nobody has."""

import csv
import hashlib
import io
import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfganext import settings
from dfganext.data import manifest
from dfganext.labels import NAMES
from dfganext.models import classifier


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def enter_root(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the root of a workflow with no store yet, and the working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").touch()
    patch.chdir(folder)
    return folder


def detector(folder: Path, good: bool, threshold: float = 0.5, architecture: str = "test_convnext") -> Path:
    """Weights, config and operating point of a tiny untrained classifier in `folder`.

    On `faces`, the good one ranks well above chance; the other is the same with its head's sign turned, and so below it.
    """
    model, config = classifier.build(architecture, "bce", 32, seed=0)
    head = model.pretrained_cfg["classifier"]
    turn = -1 if good else 1
    state = {name: turn * value if name.startswith(head) else value for name, value in model.state_dict().items()}
    classifier.save(folder, state, config)
    (folder / "operating_point.json").write_text(json.dumps({"threshold": threshold, "temperature": 1.0}))
    return folder


def png(label: int, seed: int) -> bytes:
    """A noise picture; those of "fake" are darker."""
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8) // (1 + label)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def faces(root: Path, validation: int = 20, drawn: int = 0) -> None:
    """split.csv, manifest.csv and raw/: per class as many images for validation, and one each to train and to test.

    Another `drawn` starts the split at another image, so that some trained on before are now for validation.
    """
    rows, described = [], []
    for label, name in enumerate(NAMES):
        (root / "raw" / name).mkdir(parents=True, exist_ok=True)
        for index in range(validation + 2):
            path, data = f"{name}/{index}.png", png(label, index)
            (root / "raw" / path).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            split = {0: "train", 1: "test"}.get((index - drawn) % (validation + 2), "validation")
            rows.append([path, name, split, sha256, len(rows)])
            described.append({"path": path, "label": name, "sha256": sha256, **hashes(label, index)})
    with (root / "split.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split", "sha256", "group"], *rows])
    filling = dict.fromkeys(manifest.TYPES, "0")
    with (root / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(manifest.TYPES))
        writer.writeheader()
        writer.writerows(filling | row for row in described)


def hashes(label: int, index: int) -> dict[str, str]:
    """Perceptual hashes that are far apart for different images."""
    drawn = np.random.default_rng([label, index]).bytes(64).hex()
    return {"phash": drawn[:64], "phash_mirrored": drawn[64:]}


def promotion_settings(**changes: Any) -> settings.Promote:
    """Of a promotion of the tiny detectors: by ROC AUC, on at least two images of each class."""
    values = {"metric": "roc_auc", "min_images": 2, "architectures": ("test_convnext",), "precision": "float32"}
    return settings.Promote(**values | changes)


def promote(name: str, run_id: str, near_duplicate_bits: int = 8, tags: dict[str, str] | None = None, **changes: Any):
    """Promote the detector in the folder `name` on the `faces` in the working directory."""
    from dfganext.tracking import promotion

    data = promotion.Data.read(Path("split.csv"), Path("manifest.csv"), Path("raw"), near_duplicate_bits)
    folder = Path(name)
    chosen = promotion_settings(**changes)
    return promotion.promote(folder, folder / "operating_point.json", data, chosen, run_id, tags)


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
"""Settings with which a pipeline takes a minute."""


def shrink(params: str) -> str:
    """Settings of the same shape, with less to do."""
    for key, value in SMALL.items():
        params, count = re.subn(rf"^(  {key}: ).*$", rf"\g<1>{value}", params, flags=re.MULTILINE)
        assert count, f"params.yaml has no {key}"
    return params
