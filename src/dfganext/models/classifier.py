"""The classifier: any timm image classifier with a new head, by default ConvNeXt-T (Liu et al. 2022).

With `loss: ce` the head has two logits (real, fake), with `loss: bce` it has one. Everything after the head speaks of one
number an image, the logit of "fake": positive means fake, and its sigmoid is p_fake.
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
    """What it takes, beside the weights, to apply a classifier as it was trained.

    precision ("float32" or "bfloat16") and device ("cpu" or "cuda") say with what it was trained; None where that is unknown.
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
        """A decoded image as stage `resize` would store it: uint8 (height, width, 3) -> (size, size, 3)."""
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
        size: pixels a side that it will be fed.
        weights: "random", "imagenet" (from the Hugging Face hub), or the path of a .safetensors or .pth file.
        seed: of the random initial values.
        match: which tensor of the file goes where: "name", the one of the same name, or "order", the first to the first and so
            on, for files from other code bases. Shapes must agree in both cases.

    Raises:
        UserError: unknown architecture, one that cannot be made for this size, weights that cannot be fetched, stored, read or
            fitted, too little memory, or a missing package.
    """
    if not _is_known(architecture):
        near = timm.list_models(f"*{architecture.partition('.')[0].split('_')[0]}*")[:6]
        raise UserError(
            f"convnext.architecture: timm knows no model {architecture!r}; timm.list_models() has them all, "
            f"among them {', '.join(near or ['convnext_tiny'])}."
        )
    with network_errors(architecture, size):
        model = _create(architecture, outputs_of(loss), size, seed)
    if weights == "imagenet":
        model = _create_pretrained(architecture, outputs_of(loss), size, seed)
    file = weights_file(weights)
    if file is not None:
        _load_backbone(model, file, match)
    if weights != "random":
        _quieten_head(model, seed)
    normalise = timm.data.resolve_model_data_config(model)
    return model, ClassifierConfig(architecture, loss, size, tuple(normalise["mean"]), tuple(normalise["std"]))


def preprocess(images: Tensor, config: ClassifierConfig) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W), normalised by the architecture's mean and standard deviation.

    Training, evaluation, Grad-CAM and serving all come through here. The result is channels_last in memory.
    """
    mean = torch.tensor(config.mean, device=images.device) * 255
    std = torch.tensor(config.std, device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W), no copy


def fake_logits(outputs: Logits) -> Logits:
    """Logit of "fake", of a tensor or an array: (N, 2) -> (N,) as the difference of the two logits, (N, 1) -> (N,) as it is."""
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
    for part, batch in batches(images, batch_size, device):
        outputs[part] = model(preprocess(batch, config)).float().cpu().numpy()
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
    # a copy of each: safetensors refuses tensors that share memory, as those of architectures that use a layer twice do
    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[nn.Module, ClassifierConfig]:
    """Read back what `save` wrote, in evaluation mode. UserError if `folder` holds no classifier that can be used."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if "equalise" in values:  # the name of reencode until version 0.1
            values["reencode"] = values.pop("equalise")
        config = ClassifierConfig(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        blank = np.array(config.prepare(np.zeros((8, 8, 3), np.uint8)))
        preprocess(torch.from_numpy(blank)[None], config)  # fails now, not at the first image, where a type is wrong
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
            f"{folder} holds a damaged classifier, or none of this package's ({_reason(error)}); train it again with "
            "`dvc repro train_convnext`, or name another folder."
        ) from error
    return model.eval(), config


def map_layer(model: nn.Module) -> nn.Module:
    """The layer that Grad-CAM reads: the last block of the last stage (ConvNeXt: the fourth).

    Of a transformer with a class token it is the block's first normalisation, as pytorch-grad-cam's documentation has it:
    after the attention that follows, only the class token is read, and no gradient reaches the others.

    Raises:
        UserError: timm names no stage of this architecture, or none that is there.
    """
    try:
        stage = model.get_submodule(str(model.feature_info[-1]["module"]))  # type: ignore[index]
    except (AttributeError, LookupError, TypeError):
        raise _unmapped(model, "stages timm does not name") from None
    blocks = getattr(stage, "blocks", stage)
    block = blocks[-1] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else stage
    return getattr(block, "norm1", block) if getattr(model, "num_prefix_tokens", 0) else block


def as_grid(features: object, model: nn.Module) -> Tensor:
    """What a layer of `model` makes of square images, one vector a place, as (N, C, h, h).

    Args:
        features: (N, C, h, h), or (N, h, h, C) as of Swin, or tokens (N, L, C) as of ViT: h h of them, row by row, perhaps
            after others that have no place, such as the class token.

    Raises:
        UserError: they lie on no square grid.
    """
    if isinstance(features, Tensor) and features.ndim == 4:
        _, first, second, third = features.shape
        if first == second and (second != third or getattr(model, "output_fmt", "NCHW") == "NHWC"):
            return features.permute(0, 3, 1, 2)  # (N, h, h, C) -> (N, C, h, h)
        if second == third:
            return features
    if isinstance(features, Tensor) and features.ndim == 3:
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0):  # some add the class token only after the last stage
            places = features.shape[1] - prefix
            side = math.isqrt(max(places, 0))
            if side and side * side == places:
                return features[:, prefix:].transpose(1, 2).unflatten(2, (side, side))  # (N, L, C) -> (N, C, h, h)
    form = f"the shape {tuple(features.shape)}" if isinstance(features, Tensor) else "several tensors"
    raise _unmapped(model, f"last block gives {form} and no square grid")


def _unmapped(model: nn.Module, why: str) -> UserError:
    return UserError(
        f"convnext.architecture: no Grad-CAM map can be made of {_name(model)}, whose {why}; choose another, such as "
        "convnext_tiny."
    )


@contextmanager
def network_errors(architecture: str, size: int) -> Iterator[None]:
    """Around the making and the calls of a network, and of nothing else: says in a UserError why they fail.

    Architectures have many ways of their own to refuse a size. What no network raises for its images' size is a bug, here or
    in a library, and passes with its traceback.

    Raises:
        UserError: the size is refused, memory runs out, the GPU fails, a package is missing, or PyTorch has no repeatable
            algorithm.
    """
    try:
        yield
    except ImportError as error:
        raise _missing_package(architecture, error) from error
    except MemoryError as error:
        raise _too_little_memory(architecture, size, error) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise _too_little_memory(architecture, size, error) from error
        if isinstance(error, torch.AcceleratorError):
            raise UserError(
                f"machine.device: the GPU failed ({_reason(error)}); free or restart it, or set machine.device to cpu."
            ) from error
        if "does not have a deterministic implementation" in str(error):
            raise UserError(
                f"convnext.architecture: {architecture} cannot be trained with the same result every time on this device "
                f"({_reason(error)}); choose another, or set machine.device to cpu."
            ) from error
        raise UserError(
            f"convnext.architecture: {architecture} cannot be used with images of {size} pixels ({_reason(error)}); choose "
            "another, or change convnext.size."
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, the processor's (Python's own error or PyTorch's RuntimeError) or the GPU's."""
    words = ("DefaultCPUAllocator", "not enough memory", "CUDA error: out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _too_little_memory(architecture: str, size: int, error: Exception) -> UserError:
    return UserError(
        f"There is too little memory for {architecture} at {size} pixels ({_reason(error)}): free some, choose a smaller "
        "convnext.architecture or convnext.size, or set machine.device to another device."
    )


def _missing_package(architecture: str, error: Exception) -> UserError:
    return UserError(
        f"convnext.architecture: {architecture} needs a package that cannot be imported ({_reason(error)}); install it, or choose "
        "another architecture."
    )


def _name(model: nn.Module) -> str:
    return str(model.pretrained_cfg["architecture"])  # type: ignore[index]


def _reason(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {one_line(error)}", 240)


def _is_known(architecture: str) -> bool:
    """Whether timm has a model of this name and, after a dot, weights of this tag."""
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
            return create(img_size=size)  # transformers need to know
        except TypeError:
            return create()


def _create_pretrained(architecture: str, outputs: int, size: int, seed: int) -> nn.Module:
    """An architecture that can be made for this size, with ImageNet weights: what fails now is not the architecture's."""
    try:
        return _create(architecture, outputs, size, seed, pretrained=True)
    except ImportError as error:
        raise _missing_package(architecture, error) from error
    except Exception as error:
        what = _weights_trouble(error)
        if is_out_of_memory(error):
            raise _too_little_memory(architecture, size, error) from error
        if what is None:
            raise  # a bug
        raise UserError(f"convnext.weights: the ImageNet weights of {architecture} {what}.") from error


def _weights_trouble(error: Exception) -> str | None:
    """What happened to weights from the Hugging Face hub, and what to do; None for errors that do not come of it."""
    said = f"({_reason(error)})"
    elsewhere = "set convnext.weights to random or to the path of a .safetensors or .pth file"
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"do not fit on the disk {said}; make room, or set HF_HOME to a folder on another disk"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot be stored {said}; make the folder writable, or set HF_HOME to another one"
    if "No pretrained weights exist" in str(error):
        return f"do not exist in timm; choose another convnext.architecture, or {elsewhere}"
    if isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError | zipfile.BadZipFile | ValueError) or any(
        words in str(error) for words in ("PytorchStreamReader", "invalid hash value", "loading state_dict")
    ):
        return f"cannot be read {said}; delete them from the hub's cache (HF_HOME, by default ~/.cache/huggingface) to fetch them anew"
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    # the hub's own downloader reports its failures as RuntimeError
    if isinstance(error, OSError | RuntimeError) or libraries & {"httpx", "requests", "huggingface_hub"}:
        return f"could not be fetched from the Hugging Face hub {said}; connect to the network, or {elsewhere}"
    return None


def _quieten_head(model: nn.Module, seed: int) -> None:
    """Start fine-tuning near p_fake = 0.5: some heads of timm start with logits of 30, whose gradients undo the weights."""
    head = model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Linear):
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        nn.init.zeros_(head.bias)


def _load_backbone(model: nn.Module, path: Path, match: str) -> None:
    """Fill all but the head from a checkpoint."""
    state = _read_checkpoint(path)
    classifier = model.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)

    def wanted(name: str) -> bool:
        return not name.startswith(heads) and not name.endswith("num_batches_tracked")

    target = {name: value for name, value in model.state_dict().items() if wanted(name)}
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
    """The first tensors of `state`, under the names of `target`; a head may follow them."""
    candidates = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    return dict(zip(target, candidates, strict=False))


def _first_mismatch(target: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the first tensor of `target` that `found` lacks or has in another shape."""
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
            "holds tensors alone."
        ) from error
    for key in ("model", "state_dict", "model_ema"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"convnext.weights: {path} holds no mapping of names to tensors.")
    return state
