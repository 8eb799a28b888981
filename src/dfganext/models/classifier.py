"""The classifier: any timm image classifier with a new head, by default ConvNeXt-T (Liu et al. 2022).

With `loss: ce` the head has two logits (real, fake), with `loss: bce` it has one. All other code uses one number per image, the
logit of "fake": positive means fake, and its sigmoid is p_fake.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import pickle
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfganext.errors import UserError, one_line
from dfganext.images import prepare
from dfganext.labels import FAKE, REAL
from dfganext.models.batches import batches
from dfganext.settings import weights_file

Logits = TypeVar("Logits", Tensor, np.ndarray)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ClassifierConfig:
    """What is needed beside the weights to apply a classifier as it was trained.

    precision ("float32" or "bfloat16") and device ("cpu" or "cuda") are those of training; None if they are unknown.
    """

    architecture: str
    loss: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "lanczos"
    reencode: bool = False
    precision: str | None = None
    device: str | None = None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """A decoded image as stage `resize` stores it: uint8 (height, width, 3) -> (size, size, 3)."""
        return prepare(image, self.size, self.interpolation, self.reencode)


def outputs_of(loss: str) -> int:
    """Logits in the head: 2 for cross entropy, 1 for binary cross entropy."""
    return {"ce": 2, "bce": 1}[loss]


def build(
    architecture: str, loss: str, size: int, weights: str = "random", seed: int = 0, match: str = "name"
) -> tuple[nn.Module, ClassifierConfig]:
    """Make a classifier with a fresh head.

    Args:
        architecture: a timm model name.
        loss: "ce" or "bce"; decides the head.
        size: width and height of its input images, in pixels.
        weights: "random", "imagenet" (from the Hugging Face hub), or the path of a .safetensors or .pth file.
        seed: of the random initial values.
        match: how tensors of a weights file are assigned: by "name", or in "order", the first to the first and so on, for
            files from other code bases. Shapes must agree in both cases.

    Raises:
        UserError: the architecture is unknown, cannot be made for this size or needs a missing package; the weights cannot be
            fetched, stored, read or fitted; or there is too little memory.
    """
    if not _is_known(architecture):
        near = timm.list_models(f"*{architecture.partition('.')[0].split('_')[0]}*")[:6]
        raise UserError(
            f"convnext.architecture: timm has no model {architecture!r}; choose one of timm.list_models(), such as "
            f"{', '.join(near or ['convnext_tiny'])}."
        )
    with network_errors(architecture, size):
        model = _create(architecture, outputs_of(loss), size, seed)
    if weights == "imagenet":
        with network_errors(architecture, size, imagenet=True):
            model = _create(architecture, outputs_of(loss), size, seed, pretrained=True)
    file = weights_file(weights)
    if file is not None:
        _load_backbone(model, file, match)
    if weights != "random":
        _reset_head(model, seed)
    normalise = timm.data.resolve_model_data_config(model)
    return model, ClassifierConfig(architecture, loss, size, tuple(normalise["mean"]), tuple(normalise["std"]))


def preprocess(images: Tensor, config: ClassifierConfig) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W), normalised by the architecture's mean and standard deviation.

    Training, evaluation, Grad-CAM and serving all call this function. The result is channels_last in memory.
    """
    mean = torch.tensor(config.mean, device=images.device) * 255
    std = torch.tensor(config.std, device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W), no copy


def fake_logits(outputs: Logits) -> Logits:
    """Logits of "fake": (N, 2) -> (N,), the difference of the two logits, or (N, 1) -> (N,), the logit itself."""
    if outputs.shape[1] == 2:
        return outputs[:, FAKE] - outputs[:, REAL]
    return outputs[:, 0]


@torch.inference_mode()
def predict_outputs(
    model: nn.Module,
    config: ClassifierConfig,
    images: np.ndarray,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The head's logits: uint8 (N, size, size, 3) -> float32 (N, 2), or (N, 1) with `loss: bce`."""
    model = model.to(device).eval()
    outputs = np.empty((len(images), outputs_of(config.loss)), np.float32)
    for rows, batch in batches(images, batch_size, device):
        outputs[rows] = model(preprocess(batch, config)).float().cpu().numpy()
    return outputs


def predict_logits(
    model: nn.Module,
    config: ClassifierConfig,
    images: np.ndarray,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Logits of "fake", computed in float32: uint8 (N, size, size, 3) -> float64 (N,)."""
    return fake_logits(predict_outputs(model, config, images, batch_size, device)).astype(np.float64)


def save(folder: Path, state: Mapping[str, Tensor], config: ClassifierConfig) -> None:
    """Write weights and config into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # clones, because safetensors refuses tensors that share memory, which architectures that use a layer twice have
    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[nn.Module, ClassifierConfig]:
    """Load what `save` wrote, in evaluation mode. UserError if `folder` holds no usable classifier."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if "equalise" in values:  # the name of reencode until version 0.1
            values["reencode"] = values.pop("equalise")
        config = ClassifierConfig(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        blank = np.array(config.prepare(np.zeros((8, 8, 3), np.uint8)))
        preprocess(torch.from_numpy(blank)[None], config)  # so that a wrong type fails here and not at the first image
        model = _create(config.architecture, outputs_of(config.loss), config.size, seed=0)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no trained classifier ({Path(error.filename or WEIGHTS_FILE).name} is missing); "
            "`dvc repro train_convnext` makes one."
        ) from None
    except Exception as error:  # files from elsewhere can be wrong in any way
        if is_out_of_memory(error):
            raise UserError(f"There is too little memory to load {folder} ({_reason(error)}); free some.") from error
        raise UserError(
            f"{folder} holds a damaged classifier, or one that this package did not make ({_reason(error)}); train it again with "
            "`dvc repro train_convnext`, or name another folder."
        ) from error
    return model.eval(), config


def map_layer(model: nn.Module) -> nn.Module:
    """The layer whose output Grad-CAM uses: the last block of the last stage (ConvNeXt: the fourth).

    In a transformer with a class token it is the first normalisation of that block, as pytorch-grad-cam's documentation advises:
    the head uses only the class token of the block's output, so no gradient reaches the other tokens there.

    Raises:
        UserError: timm lists no stages for this architecture, or stages that the model does not have.
    """
    try:
        stage = model.get_submodule(str(model.feature_info[-1]["module"]))  # type: ignore[index]
    except (AttributeError, LookupError, TypeError):
        raise _no_map(model, "stages are not listed by timm") from None
    blocks = getattr(stage, "blocks", stage)
    block = blocks[-1] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else stage
    return getattr(block, "norm1", block) if getattr(model, "num_prefix_tokens", 0) else block


def to_grid(features: object, model: nn.Module) -> Tensor:
    """The output of a layer of `model` for square images, as (N, C, H, W) with H = W.

    Args:
        features: (N, C, H, W) as in ConvNeXt; (N, H, W, C) as in Swin; or tokens (N, L, C) as in ViT, where the last H W tokens
            are the image's, row by row, after prefix tokens such as the class token.

    Raises:
        UserError: the features form no square grid.
    """
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    grid = features
    if isinstance(grid, Tensor) and grid.ndim == 3:
        # some models add the class token only after the last stage
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0):
            side = math.isqrt(max(grid.shape[1] - prefix, 0))
            if side > 0 and prefix + side**2 == grid.shape[1]:
                grid, channels_last = grid[:, prefix:].unflatten(1, (side, side)), True  # (N, L, C) -> (N, H, W, C)
                break
    if isinstance(grid, Tensor) and grid.ndim == 4:
        _, first, second, third = grid.shape
        if first == second and (channels_last or second != third):
            return grid.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        if second == third:
            return grid
    form = f"the shape {tuple(features.shape)}" if isinstance(features, Tensor) else "several tensors"
    raise _no_map(model, f"last block returns {form} and no square grid")


def _no_map(model: nn.Module, why: str) -> UserError:
    return UserError(
        f"convnext.architecture: no Grad-CAM map can be made of {_name(model)}, whose {why}; choose another, such as "
        "convnext_tiny."
    )


@contextmanager
def network_errors(architecture: str, size: int, imagenet: bool = False) -> Iterator[None]:
    """Translate errors raised by a network to a UserError. Wrap only its creation and its calls.

    Architectures raise many kinds of errors for a size that they do not support. Other errors are bugs and are raised again.

    Args:
        imagenet: the block loads ImageNet weights into a network that can be created for this size.

    Raises:
        UserError: the size is not supported, memory runs out, the GPU fails, a package is missing, PyTorch has no repeatable
            algorithm, or the weights cannot be fetched, stored or read.
    """
    try:
        yield
    except Exception as error:
        why = _explain(error, architecture, size, imagenet)
        if why is None:
            raise
        raise UserError(why) from error


def _explain(error: Exception, architecture: str, size: int, imagenet: bool) -> str | None:
    """The message for an error that a network raised; None for a bug."""
    reason = f"({_reason(error)})"
    if isinstance(error, ImportError):
        return (
            f"convnext.architecture: {architecture} needs a package that cannot be imported {reason}; install it, or choose "
            "another architecture."
        )
    if is_out_of_memory(error):
        return (
            f"There is too little memory for {architecture} at {size} pixels {reason}: free some, choose a smaller "
            "convnext.architecture or convnext.size, or set machine.device to another device."
        )
    if imagenet:
        why = _explain_weights(error)
        return why and f"convnext.weights: the ImageNet weights of {architecture} {why}."
    if isinstance(error, torch.AcceleratorError):
        return f"machine.device: the GPU failed {reason}; free or restart it, or set machine.device to cpu."
    if "does not have a deterministic implementation" in str(error):
        return (
            f"convnext.architecture: {architecture} cannot be trained with the same result every time on this device "
            f"{reason}; choose another, or set machine.device to cpu."
        )
    if isinstance(error, _SIZE_ERRORS):
        return (
            f"convnext.architecture: {architecture} cannot be used with images of {size} pixels {reason}; choose another, or "
            "change convnext.size."
        )
    return None


_SIZE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _explain_weights(error: Exception) -> str | None:
    """What went wrong with weights from the Hugging Face hub and what to do; None for other errors."""
    reason, text, number = f"({_reason(error)})", str(error), getattr(error, "errno", None)
    alternative = "set convnext.weights to random or to the path of a .safetensors or .pth file"
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return f"do not fit on the disk {reason}; make room, or set HF_HOME to a folder on another disk"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot be stored {reason}; make the folder writable, or set HF_HOME to another one"
    if "No pretrained weights exist" in text:
        return f"do not exist in timm; choose another convnext.architecture, or {alternative}"
    damaged = ("PytorchStreamReader", "invalid hash value", "loading state_dict")
    unreadable = (SafetensorError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError)
    if isinstance(error, unreadable) or any(words in text for words in damaged):
        return (
            f"cannot be read {reason}; delete them from the hub's cache (HF_HOME, by default ~/.cache/huggingface) to fetch "
            "them anew"
        )
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    # the hub's own downloader raises RuntimeError
    if isinstance(error, OSError | RuntimeError) or libraries & {"httpx", "requests", "huggingface_hub"}:
        return f"could not be fetched from the Hugging Face hub {reason}; connect to the network, or {alternative}"
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out on the CPU (Python's error or PyTorch's RuntimeError) or on the GPU."""
    words = ("DefaultCPUAllocator", "not enough memory", "CUDA error: out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _name(model: nn.Module) -> str:
    return str(model.pretrained_cfg["architecture"])  # type: ignore[index]


def _reason(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {one_line(error)}", 240)


def _is_known(architecture: str) -> bool:
    """Whether timm has a model of this name and, if a tag follows after a dot, weights of this tag."""
    try:
        return timm.is_model(architecture) and bool(timm.models.get_pretrained_cfg(architecture))
    except RuntimeError:
        return False


def _create(architecture: str, outputs: int, size: int, seed: int, pretrained: bool = False) -> nn.Module:
    def create(**options: Any) -> nn.Module:
        torch.manual_seed(seed)
        return timm.create_model(architecture, pretrained=pretrained, num_classes=outputs, **options)

    with torch.random.fork_rng(devices=[]):
        try:
            return create(img_size=size)  # transformers need it
        except TypeError:
            return create()


def _reset_head(model: nn.Module, seed: int) -> None:
    """Start fine-tuning near p_fake = 0.5. Some heads of timm start with logits of 30, whose gradients destroy the weights."""
    head = model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Linear):
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        nn.init.zeros_(head.bias)


def _load_backbone(model: nn.Module, path: Path, match: str) -> None:
    """Load all weights but the head's from a file."""
    state = _read_checkpoint(path)
    classifier = model.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)

    def is_loaded(name: str) -> bool:
        return not name.startswith(heads) and not name.endswith("num_batches_tracked")

    target = {name: value for name, value in model.state_dict().items() if is_loaded(name)}
    found = state if match == "name" else _by_order(target, state)
    mismatch = _first_mismatch(target, found)
    if mismatch is not None:
        advice = (
            "give a file of this architecture, or, if its tensors only have other names, set convnext.match to order"
            if match == "name"
            else "by order too, the file must be of this architecture"
        )
        raise UserError(f"convnext.weights: {path} does not fit {_name(model)}: {mismatch}; {advice}.")
    model.load_state_dict({name: found[name] for name in target}, strict=False)


def _by_order(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first tensors of `state` under the names of `target`; tensors of a head may follow them."""
    candidates = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    return dict(zip(target, candidates, strict=False))


def _first_mismatch(target: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Describes the first tensor of `target` that is missing from `found` or has another shape there; None if all fit."""
    for name, value in target.items():
        if name not in found:
            return f"it has no tensor for {name}"
        if found[name].shape != value.shape:
            return f"its tensor for {name} has the shape {tuple(found[name].shape)} and not {tuple(value.shape)}"
    return None


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"convnext.weights: there is no file {path}; give random, imagenet or the path of a .safetensors or .pth file."
        )
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # files from elsewhere can be wrong in any way
        if is_out_of_memory(error):
            raise UserError(f"There is too little memory to read {path} ({_reason(error)}); free some.") from error
        raise UserError(
            f"convnext.weights: {path} cannot be read as weights ({_reason(error)}); give a .safetensors file, or a .pth file that "
            "holds only tensors."
        ) from error
    for key in ("model", "state_dict", "model_ema"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"convnext.weights: {path} holds no mapping of names to tensors; give a file that holds a state dictionary."
        )
    return state
