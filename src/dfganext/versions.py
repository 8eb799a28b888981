"""Versions of the libraries that decide what a stage makes. A stage depends on those that it uses; see dvc.yaml."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from dfganext.errors import UserError

LIBRARIES = (
    "albumentations",
    "grad-cam",
    "imagehash",
    "matplotlib",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)


def installed() -> dict[str, str]:
    """Version of each of `LIBRARIES` that is there, without what tells builds apart (2.15.0, not 2.15.0+cpu)."""
    present = {distribution.name.lower() for distribution in metadata.distributions()}
    return {name: metadata.version(name).partition("+")[0] for name in LIBRARIES if name in present}


def require_recorded(file: Path) -> None:
    """UserError where others are installed than the stages' dependencies name: results would be taken for theirs.

    Args:
        file: JSON written from `installed`; where it is missing, a stage is run by hand, and nothing is required.
    """
    if not file.is_file():
        return
    recorded, present = json.loads(file.read_text(encoding="utf-8")), installed()
    for name in sorted(recorded.keys() | present.keys()):
        if recorded.get(name) != present.get(name):
            raise UserError(
                f"{file} names {name} {recorded.get(name)}, but {present.get(name)} is installed: run `python -m stages.check`, "
                "then `dvc repro`, which runs again what depends on it."
            )
