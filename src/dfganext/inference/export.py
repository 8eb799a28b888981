"""A detector as a folder that runs elsewhere: its own files, or an ONNX model with a script that needs no PyTorch."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dfganext.errors import UserError, reason
from dfganext.inference.detector import OPERATING_POINT_FILE, Detector
from dfganext.models import classifier
from dfganext.models.classifier import CONFIG_FILE, WEIGHTS_FILE
from dfganext.models.novelty import FEATURES_FILE, NEIGHBOURS

ONNX_FILE = "model.onnx"
SCRIPT_FILE = "predict.py"

MAX_DIFFERENCE = 1e-4
"""Of p_fake and novelty between ONNX Runtime and PyTorch in float32."""


def to_safetensors(detector: Path, target: Path, beside: Mapping[str, Path]) -> None:
    """Copy a detector to a new folder, which `Detector.load` reads.

    Args:
        detector: its folder.
        target: must not exist, or be empty.
        beside: other files to copy, by their names in the new folder.

    Raises:
        UserError: the target holds something, or cannot be written.
    """
    names = (WEIGHTS_FILE, CONFIG_FILE, OPERATING_POINT_FILE, FEATURES_FILE)
    found = {name: detector / name for name in names if (detector / name).is_file()}
    with _new_folder(target, found | {**beside}):
        pass


def to_onnx(detector: Path, target: Path, beside: Mapping[str, Path]) -> None:
    """Write a detector as an ONNX model, with the script `predict.py` that decodes images and applies the model.

    The model's input is `pixels`, uint8 (N, size, size, 3); its outputs are p_fake and novelty, float32 (N,). It includes
    normalisation, the network in float32, the temperature, and the features of training images.

    Args and raises as `to_safetensors`; also UserError where the architecture cannot be exported.
    """
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise UserError("The export to ONNX needs packages that are not installed: pip install 'df-ganext[onnx]'.")
    loaded = Detector.load(detector, device=torch.device("cpu"))
    loaded.precision = "float32"
    copied = {name: detector / name for name in (CONFIG_FILE, OPERATING_POINT_FILE)}
    copied[SCRIPT_FILE] = Path(__file__).with_name("onnx_predict.py")
    with _new_folder(target, copied | {**beside}) as folder:
        _write_onnx(loaded, folder / ONNX_FILE)
        _require_same_scores(loaded, folder / ONNX_FILE)


class _Scores(nn.Module):
    """p_fake and novelty, float32 (N,), of pixels, uint8 (N, size, size, 3): `Detector.scores` as one graph."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.model, self.config = detector.model, detector.config
        self.head = classifier.head(detector.model)
        self.temperature = detector.temperature
        known = np.empty((0, 0), np.float32) if detector.neighbours is None else detector.neighbours.normalised.T.copy()
        self.known = nn.Buffer(torch.from_numpy(known))  # (C, n)
        self.rank = min(NEIGHBOURS, known.shape[1])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        spatial = self.model.forward_features(classifier.preprocess(pixels, self.config))  # type: ignore[operator]
        features = self.model.forward_head(spatial, pre_logits=True).flatten(1)  # type: ignore[operator]
        p_fake = torch.sigmoid(classifier.fake_logits(self.head(features)) / self.temperature)
        if not self.rank:
            return p_fake, torch.zeros_like(p_fake)
        similarities = nn.functional.normalize(features) @ self.known
        return p_fake, 1 - similarities.topk(self.rank).values[:, -1]


def _write_onnx(detector: Detector, file: Path) -> None:
    size, architecture = detector.config.size, detector.config.architecture
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about PyTorch's own code
        try:
            torch.onnx.export(
                _Scores(detector).eval(),
                (pixels,),
                file,
                input_names=["pixels"],
                output_names=["p_fake", "novelty"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("images")}},
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds
            raise UserError(
                f"{architecture} cannot be exported to ONNX ({reason(error)}): use --format safetensors."
            ) from error


def _require_same_scores(detector: Detector, file: Path) -> None:
    """UserError if ONNX Runtime and PyTorch disagree on random images."""
    import onnxruntime

    size = detector.config.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    difference = np.abs(np.stack(session.run(None, {"pixels": pixels}), axis=1) - detector.scores(pixels)).max()
    if not difference <= MAX_DIFFERENCE:
        raise UserError(
            f"{detector.config.architecture} gives other predictions in ONNX Runtime (p_fake or novelty differ by up to "
            f"{difference:.2g}): use --format safetensors."
        )


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
