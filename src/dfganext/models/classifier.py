"""The classifier: any timm image classifier with a new head, by default ConvNeXt-T (Liu et al. 2022).

With `loss: ce` the head has two logits (real, fake), with `loss: bce` it has one. All other code uses one number per image, the
logit of "fake": positive means fake, and its sigmoid is p_fake.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import timm
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from dfganext.errors import UserError, reason
from dfganext.images import prepare
from dfganext.labels import FAKE, REAL
from dfganext.models.batches import batches
from dfganext.models.folder import CONFIG_FILE, WEIGHTS_FILE
from dfganext.settings import weights_file

Logits = TypeVar("Logits", Tensor, np.ndarray)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ClassifierConfig:
    """What is needed beside the weights to apply a classifier; precision and device are those of training, if known."""

    architecture: str
    loss: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
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
    architecture: str,
    loss: str,
    size: int,
    weights: str = "random",
    seed: int = 0,
    match: str = "name",
    setting: str = "convnext",
    any_size: bool = False,
) -> tuple[nn.Module, ClassifierConfig]:
    """Make a classifier with a fresh head.

    Args:
        architecture: a timm model name.
        loss: "ce" or "bce"; decides the head.
        size: width and height of its input images, in pixels.
        weights: "random", "imagenet" (from the Hugging Face hub), or the path of a .safetensors or .pth file.
        seed: of the random initial values.
        match: assign the tensors of a weights file by "name", or in "order", for files from other code bases.
        setting: section of params.yaml with `architecture` and `weights`, for error messages.
        any_size: the network must take images of other sizes too, such as crops; transformers that can do so compute their masks
            or position embeddings anew for each batch. Its weights and its outputs for images of `size` are the same.

    Raises:
        UserError: the architecture is unknown, or cannot be made for this size; or the weights cannot be loaded or do not fit.
    """
    with network_errors(architecture, size, setting):
        model = _create(architecture, outputs_of(loss), size, seed, any_size)
    if weights == "imagenet":
        try:
            model = _create(architecture, outputs_of(loss), size, seed, any_size, pretrained=True)
        except Exception as error:  # the hub's libraries raise many kinds
            raise UserError(
                f"{setting}.weights: the ImageNet weights of {architecture} cannot be loaded from the Hugging Face hub "
                f"({reason(error)}); check the network and the hub's cache (HF_HOME, by default ~/.cache/huggingface), or set "
                f"{setting}.weights to random or to the path of a .safetensors or .pth file."
            ) from error
    file = weights_file(weights)
    if file is not None:
        _load_backbone(model, file, match, setting)
    if weights != "random":
        _reset_head(model, seed)
    normalise = timm.data.resolve_model_data_config(model)
    return model, ClassifierConfig(architecture, loss, size, normalise["mean"], normalise["std"])


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


def name_of(model: nn.Module) -> str:
    """timm's name of a network that timm made."""
    return str(model.pretrained_cfg["architecture"])  # type: ignore[index]


def head(model: nn.Module) -> nn.Module:
    """The last layer, which makes logits of features."""
    layer = model.get_classifier()  # type: ignore[operator]
    return layer[0] if isinstance(layer, tuple | nn.ModuleList) else layer  # a distilled model has one for each teacher


class Outputs(NamedTuple):
    """Of N images: outputs, the head's logits, (N, 2), or (N, 1) with `loss: bce`; features, what the head receives, (N, C)."""

    outputs: np.ndarray
    features: np.ndarray


def predict(
    model: nn.Module,
    config: ClassifierConfig,
    images: np.ndarray,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Outputs:
    """Outputs and features, float32, of images: uint8 (N, size, size, 3)."""
    features: list[np.ndarray] = []

    def keep(_: nn.Module, received: tuple[Tensor, ...]) -> None:
        features.append(received[0].flatten(1).float().cpu().numpy())

    with head(model).register_forward_pre_hook(keep):
        outputs = predict_outputs(model, config, images, batch_size, device)
    return Outputs(outputs, np.concatenate(features) if features else np.empty((0, 0), np.float32))


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
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    (folder / WEIGHTS_FILE).write_bytes(to_bytes(tensors))  # not save_file: only its owner could read that file
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[nn.Module, ClassifierConfig]:
    """Load what `save` wrote, in evaluation mode. UserError if `folder` holds no usable classifier."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if "equalise" in values:  # the name of reencode until version 0.1
            values["reencode"] = values.pop("equalise")
        config = ClassifierConfig(**values)
        model = _create(config.architecture, outputs_of(config.loss), config.size, seed=0)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except Exception as error:  # files from elsewhere can be wrong in any way
        raise UserError(
            f"No classifier can be loaded from {folder} ({reason(error)}); `dvc repro train_convnext` makes one, or "
            "ask for a new copy."
        ) from error
    return model.eval(), config


def map_layer(model: nn.Module) -> nn.Module:
    """The layer whose output Grad-CAM uses: the last block of the last stage (ConvNeXt: the fourth).

    In a transformer with a class token it is the first normalisation of that block, as pytorch-grad-cam's documentation advises:
    the head uses only the class token of the block's output, so no gradient reaches the other tokens there.

    Raises:
        UserError: timm lists no such stages.
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
        features: (N, C, H, W) as in ConvNeXt; (N, H, W, C) as in Swin; or tokens (N, L, C) as in ViT, where the H W tokens of
            the image, row by row, follow prefix tokens such as the class token.

    Raises:
        UserError: the features form no square grid.
    """
    if isinstance(features, Tensor) and features.ndim == 3:
        tokens = features[:, getattr(model, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        if side**2 == tokens.shape[1]:
            return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (N, L, C) -> (N, H, W, C) -> (N, C, H, W)
    if isinstance(features, Tensor) and features.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        grid = features.permute(0, 3, 1, 2) if channels_last else features  # (N, H, W, C) -> (N, C, H, W)
        if grid.shape[2] == grid.shape[3]:
            return grid
    form = f"the shape {tuple(features.shape)}" if isinstance(features, Tensor) else "several tensors"
    raise _no_map(model, f"last block returns {form} and no square grid")


def _no_map(model: nn.Module, why: str) -> UserError:
    return UserError(
        f"convnext.architecture: no Grad-CAM map can be made of {name_of(model)}, whose {why}; choose another, such as "
        "convnext_tiny."
    )


@contextmanager
def network_errors(architecture: str, size: int, setting: str = "convnext") -> Iterator[None]:
    """Translate errors raised by a network to a UserError. Wrap only its creation and its calls.

    Architectures raise many kinds of errors for a size that they do not support.
    """
    try:
        yield
    except (NameError, UserError):
        raise
    except Exception as error:
        raise UserError(
            f"{setting}.architecture: {architecture} cannot be used with images of {size} pixels ({reason(error)}); choose "
            "another, or change convnext.size, convnext.augment.crop, convnext.batch_size or machine.device."
        ) from error


def _create(
    architecture: str, outputs: int, size: int, seed: int, any_size: bool = False, pretrained: bool = False
) -> nn.Module:
    if not timm.is_model(architecture):  # timm would take it for the address of a model
        raise ValueError(f"timm has no model {architecture!r}")

    def create(**options: Any) -> nn.Module:
        torch.manual_seed(seed)
        return timm.create_model(architecture, pretrained=pretrained, num_classes=outputs, **options)

    # transformers need the size; to accept others as well, Swin has the first of these options, ViT the second
    attempts = [{"img_size": size, "strict_img_size": False}, {"img_size": size, "dynamic_img_size": True}]
    with torch.random.fork_rng(devices=[]):
        for options in [*(attempts if any_size else ()), {"img_size": size}]:
            with suppress(TypeError):
                return create(**options)
        return create()


def _reset_head(model: nn.Module, seed: int) -> None:
    """Start fine-tuning near p_fake = 0.5. Some heads of timm start with logits of 30, whose gradients destroy the weights."""
    head = model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Linear):
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        nn.init.zeros_(head.bias)


def _load_backbone(model: nn.Module, path: Path, match: str, setting: str) -> None:
    """Load all weights but the head's from a file."""
    if not path.is_file():
        raise UserError(
            f"{setting}.weights: there is no file {path}; give random, imagenet or the path of a .safetensors or .pth file."
        )
    try:
        state = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # files from elsewhere can be wrong in any way
        raise UserError(
            f"{setting}.weights: {path} cannot be read as weights ({reason(error)}); give a .safetensors file, or a .pth "
            "file that holds only tensors."
        ) from error
    classifier = model.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = model.state_dict()
    kept = {name for name in own if name.startswith(heads) or name.endswith("num_batches_tracked")}
    names = [name for name in own if name not in kept]
    if match == "order":  # tensors of a head may follow
        values = (value for name, value in state.items() if not name.endswith("num_batches_tracked"))
        state = dict(zip(names, values, strict=False))
    fitting = {name: state[name] for name in names if name in state}
    try:
        model.load_state_dict(fitting | {name: own[name] for name in kept})
    except RuntimeError as error:
        raise UserError(
            f"{setting}.weights: {path} does not fit {setting}.architecture ({reason(error)}); give a file of this "
            "architecture, or, if its tensors only have other names, set convnext.match to order."
        ) from error
