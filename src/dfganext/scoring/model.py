"""A detector's files, as they are sent to the workers."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfganext.errors import UserError
from dfganext.inference.operating_point import read_operating_point
from dfganext.models.folder import CONFIG_FILE, FEATURES_FILE, ONNX_FILE, OPERATING_POINT_FILE, WEIGHTS_FILE
from dfganext.tracking import registry

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
    """Read a detector's files. Workers load it, so that this process does not need PyTorch.

    Raises:
        UserError: no detector is found, a file cannot be read, or neither an operating point nor a threshold is given.
    """
    address = registry.pinned(uri)
    with registry.resolve(address) as folder:
        point = read_operating_point(folder / OPERATING_POINT_FILE, threshold)
        names = [WEIGHTS_FILE, CONFIG_FILE]
        names += [FEATURES_FILE] if point.needs_features else []
        names += [ONNX_FILE] if point.engine != "torch" else []
        files = {name: _read(folder / name) for name in names}
    temperature = 1.0 if point.temperature is None else point.temperature
    values: dict[str, Any] = {"threshold": point.threshold, "temperature": temperature, "precision": point.precision}
    if point.engine != "torch":
        values["engine"] = point.engine
    values["decision"] = None if point.decision is None else asdict(point.decision)
    identity = hashlib.sha256()
    for data in files.values():
        identity.update(hashlib.sha256(data).digest())
    identity.update(json.dumps(list(values.values())).encode())
    files[OPERATING_POINT_FILE] = json.dumps(values).encode()
    sha256 = identity.hexdigest()
    version = address if address.startswith("models:/") else f"sha256:{sha256[:16]}"
    return Model(files, version, sha256, values["threshold"], temperature, point.temperature is not None)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): name another model, or ask for a new copy."
        ) from error


def detector_of(files: Mapping[str, Any]) -> Detector:
    """The detector of these files, given by name as bytes or arrays of bytes. UserError if they are damaged."""
    from dfganext.inference.detector import Detector

    with tempfile.TemporaryDirectory() as temporary:
        for name, data in files.items():
            Path(temporary, name).write_bytes(data)
        try:
            return Detector.load(Path(temporary))
        except UserError as error:
            raise UserError(str(error).replace(temporary, "the model")) from None
