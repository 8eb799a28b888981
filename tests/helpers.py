"""What several test modules make: an empty root, tiny detectors whose order is known, images to judge; a port nobody has."""

import csv
import io
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def faces(root: Path, validation: int = 20) -> tuple[Path, Path]:
    """A split table and the folder of its images: per class as many for validation, and one each to train and to test."""
    raw, rows = root / "raw", []
    for label, name in enumerate(NAMES):
        (raw / name).mkdir(parents=True)
        for index in range(validation + 2):
            path = raw / name / f"{index}.png"
            path.write_bytes(png(label, index))
            split = "train" if index == 0 else "test" if index == 1 else "validation"
            rows.append([path.relative_to(raw).as_posix(), name, split, "-", len(rows)])
    with (root / "split.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split", "sha256", "group"], *rows])
    return root / "split.csv", raw


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
