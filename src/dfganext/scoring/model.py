"""A detector's files, as they are sent to the workers."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfganext.inference.detector import Detector


@dataclass(frozen=True)
class Model:
    """A detector's files by name, the version that rows show, and its identity.

    sha256 is over weights, config, operating point, features and an engine's ONNX model: models with the same value give the same
    predictions. calibrated: whether the temperature is known; otherwise it is 1.
    """

    files: Mapping[str, bytes]
    version: str
    sha256: str
    threshold: float
    temperature: float
    calibrated: bool


def load(uri: str | None, threshold: float | None = None) -> Model:
    """Read a detector's files, after loading it as a check; its operating point is that of `Detector.load`.

    Raises:
        UserError: there is no detector, or it has no operating point and no threshold is given.
    """
    import torch

    from dfganext.inference.detector import OPERATING_POINT_FILE, Detector
    from dfganext.inference.engines import ONNX_FILE
    from dfganext.models.classifier import CONFIG_FILE, WEIGHTS_FILE
    from dfganext.models.novelty import FEATURES_FILE
    from dfganext.tracking import registry

    address = registry.pinned(uri)
    with registry.resolve(address) as folder:
        detector = Detector.load(folder, device=torch.device("cpu"), threshold=threshold)
        files = {name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE)}
        if detector.neighbours is not None:
            files[FEATURES_FILE] = (folder / FEATURES_FILE).read_bytes()
        if detector.engine is not None:
            files[ONNX_FILE] = (folder / ONNX_FILE).read_bytes()
    point = {name: getattr(detector, name) for name in ("threshold", "temperature", "precision")}
    if detector.engine is not None:
        point["engine"] = detector.engine.name
    point["decision"] = None if detector.decision is None else asdict(detector.decision)
    identity = hashlib.sha256()
    for data in files.values():
        identity.update(hashlib.sha256(data).digest())
    identity.update(json.dumps(list(point.values())).encode())
    files[OPERATING_POINT_FILE] = json.dumps(point).encode()
    sha256 = identity.hexdigest()
    version = address if address.startswith("models:/") else f"sha256:{sha256[:16]}"
    return Model(files, version, sha256, detector.threshold, detector.temperature, detector.calibrated)


def detector_of(files: Mapping[str, Any]) -> Detector:
    """The detector of these files, given by name as bytes or arrays of bytes."""
    from dfganext.inference.detector import Detector

    with tempfile.TemporaryDirectory() as temporary:
        for name, data in files.items():
            Path(temporary, name).write_bytes(data)
        return Detector.load(Path(temporary))
