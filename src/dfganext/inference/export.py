"""A detector as a folder that runs elsewhere: its own files, or an ONNX model with a script that needs no PyTorch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from dfganext.errors import UserError
from dfganext.inference import onnx_model
from dfganext.inference.detector import Detector
from dfganext.models.folder import CONFIG_FILE, FEATURES_FILE, ONNX_FILE, OPERATING_POINT_FILE, WEIGHTS_FILE

SCRIPT_FILE = "predict.py"


def to_safetensors(detector: Path, target: Path, beside: Mapping[str, Path]) -> None:
    """Copy a detector to a new folder, which `Detector.load` reads.

    Args:
        detector: its folder.
        target: must not exist, or be empty.
        beside: other files to copy, by their names in the new folder.

    Raises:
        UserError: the target holds something, or cannot be written.
    """
    names = (WEIGHTS_FILE, CONFIG_FILE, OPERATING_POINT_FILE, FEATURES_FILE, ONNX_FILE)
    found = {name: detector / name for name in names if (detector / name).is_file()}
    with _new_folder(target, found | {**beside}):
        pass


def to_onnx(detector: Path, target: Path, beside: Mapping[str, Path]) -> None:
    """Write a detector as an ONNX model (`onnx_model.write`), with the script `predict.py` that decodes images and applies it.

    Args and raises as `to_safetensors`; also as `onnx_model.write`.
    """
    loaded = Detector.load(detector, device=torch.device("cpu"))
    copied = {name: detector / name for name in (CONFIG_FILE, OPERATING_POINT_FILE)}
    copied[SCRIPT_FILE] = Path(__file__).with_name("onnx_predict.py")
    with _new_folder(target, copied | {**beside}) as folder:
        onnx_model.write(loaded, folder / ONNX_FILE, "use --format safetensors")


@contextmanager
def _new_folder(target: Path, copied: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder, with copies of files by name, that becomes `target` at the end; nothing remains of it after an error."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already and is not an empty folder: name another.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            folder = Path(temporary) / "folder"
            folder.mkdir()
            for name, file in copied.items():
                shutil.copyfile(file, folder / name)
            yield folder
            folder.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}): name another folder.") from error
