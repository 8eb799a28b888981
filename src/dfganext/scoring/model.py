"""A detector's files, as they are sent to the processes that judge."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfganext.inference.detector import Detector


@dataclass(frozen=True)
class Model:
    """A detector to be sent to workers: its files by name, the version that rows show, and what tells it from others.

    sha256 is over weights, config, threshold, temperature and precision: models with the same one give the same verdicts.
    calibrated: whether the temperature is known, or taken to be 1.
    """

    files: Mapping[str, bytes]
    version: str
    sha256: str
    threshold: float
    temperature: float
    calibrated: bool


def load(uri: str | None, threshold: float | None = None) -> Model:
    """Read a detector's files, after a look at whether they are whole; its operating point is the one of `Detector.load`.

    Raises:
        UserError: there is none, or it has no operating point and no threshold is given.
    """
    import torch

    from dfganext.inference.detector import OPERATING_POINT_FILE, Detector
    from dfganext.models.classifier import CONFIG_FILE, WEIGHTS_FILE
    from dfganext.tracking import registry

    address = registry.pinned(uri)
    with registry.resolve(address) as folder:
        detector = Detector.load(folder, device=torch.device("cpu"), threshold=threshold)
        files = {name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE)}
    point = {name: getattr(detector, name) for name in ("threshold", "temperature", "precision")}
    files[OPERATING_POINT_FILE] = json.dumps(
        point
    ).encode()  # what holds, given or read, so that workers decide nothing
    told = hashlib.sha256()
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        told.update(hashlib.sha256(files[name]).digest())
    told.update(json.dumps(list(point.values())).encode())
    version = address if address.startswith("models:/") else f"sha256:{told.hexdigest()[:16]}"
    return Model(files, version, told.hexdigest(), detector.threshold, detector.temperature, detector.calibrated)


def detector_of(files: Mapping[str, Any]) -> Detector:
    """The detector with these files, by name, each bytes or an array of bytes."""
    from dfganext.inference.detector import Detector

    with tempfile.TemporaryDirectory() as temporary:
        for name, data in files.items():
            Path(temporary, name).write_bytes(data)
        return Detector.load(Path(temporary))
