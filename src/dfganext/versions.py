"""Library versions and source files that determine a stage's output, as declared in dvc.yaml."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

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

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser, where it is installed, reads dvc.yaml ten times as fast."""


def installed() -> dict[str, str]:
    """The version of each installed library of `LIBRARIES`, without the build (2.15.0, not 2.15.0+cpu)."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name).partition("+")[0]
    return found


def require_recorded(file: Path) -> None:
    """UserError if other versions are installed than recorded: DVC would attribute the results to the recorded ones.

    `file` is JSON written from `installed`. It is missing if a stage is run by hand.
    """
    if not file.is_file():
        return
    recorded, present = json.loads(file.read_text(encoding="utf-8")), installed()
    for name in LIBRARIES:
        if recorded.get(name) != present.get(name):
            raise UserError(
                f"{file} has {name} {recorded.get(name)}, but {present.get(name)} is installed: run `python -m stages.check`, "
                "then `dvc repro`, which runs the stages that depend on it."
            )


def declared(stage: str, root: Path, recorded: Path) -> dict[str, Any]:
    """The code and libraries that a stage of the workspace `root` depends on; `recorded` is JSON written from `installed`.

    Returns:
        {"code": {file: sha256}, "libraries": {name: version}}, without files that are missing; both are empty if the stage is not
        in dvc.yaml.
    """
    file = root / "dvc.yaml"
    content = yaml.load(file.read_text(encoding="utf-8"), _LOADER) if file.is_file() else None  # noqa: S506
    declaration = (content or {}).get("stages", {}).get(stage, {})
    code = {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for dependency in declaration.get("deps", [])
        if dependency.startswith(("src/", "stages/"))
        for file in _files(root / dependency)
    }
    versions = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}
    params = (entry for entry in declaration.get("params", []) if isinstance(entry, dict))
    names = (name for entry in params for keys in entry.values() for name in keys)
    return {"code": code, "libraries": {name: versions.get(name) for name in names}}


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []
