"""Grad-CAM (Selvaraju et al. 2017) on the last block of the last stage, by pytorch-grad-cam, without its rescaling.

pytorch-grad-cam rescales each map to 0...1, which hides its intensity. Here a map stays as computed, at the block's resolution.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from torch import Tensor, nn

from dfganext.labels import ALL, FAKE
from dfganext.models.batches import batches
from dfganext.models.classifier import ClassifierConfig, map_layer, preprocess, to_grid


class RawGradCAM(GradCAM):
    """GradCAM whose result is the raw map, (N, h, w) at the resolution of the layer."""

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: list, eigen_smooth: bool) -> list[np.ndarray]:
        activations = self.activations_and_grads.activations[0].numpy()
        gradients = self.activations_and_grads.gradients[0].numpy()
        cam = self.get_cam_image(input_tensor, self.target_layers[0], targets, activations, gradients, eigen_smooth)
        return [np.maximum(cam, 0)]

    def aggregate_multi_layers(self, cam_per_target_layer: list[np.ndarray]) -> np.ndarray:
        return cam_per_target_layer[0]


def target_logit(label: int) -> Callable[[Tensor], Tensor]:
    """The scalar that a map explains, from the model's output for one image: the class's logit; with one logit, plus or minus it."""

    def logit(output: Tensor) -> Tensor:
        if len(output) == 1:
            return output[0] if label == FAKE else -output[0]
        return output[label]

    return logit


def raw_maps(
    model: nn.Module, config: ClassifierConfig, images: np.ndarray, labels: list[int] | np.ndarray, batch_size: int = 16
) -> np.ndarray:
    """Grad-CAM of each image for its target class.

    Args:
        model: a classifier from `models.classifier.load`, on any device.
        images: uint8, (N, size, size, 3).
        labels: N target classes, 0 real or 1 fake.

    Returns:
        float32, (N, h, w), zero or above, in units of logit gradient times activation.

    Raises:
        UserError: the output of the model's last block has no spatial positions.
    """
    device = next(model.parameters()).device
    layer, maps = map_layer(model), []
    cam = RawGradCAM(model=model, target_layers=[layer], reshape_transform=partial(to_grid, model=model))
    with _gradients_from(model, layer), cam:
        for part, batch in batches(images, batch_size, device):
            targets = [target_logit(int(label)) for label in labels[part]]
            maps.append(cam(input_tensor=preprocess(batch, config), targets=targets).astype(np.float32))
    return np.concatenate(maps)


def maps_of_both(model: nn.Module, config: ClassifierConfig, images: np.ndarray) -> np.ndarray:
    """`raw_maps` of each image for either class: float32, (2, N, h, w), real first."""
    return np.stack([raw_maps(model, config, images, [label] * len(images)) for label in ALL])


@contextmanager
def _gradients_from(model: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Compute gradients only down to this layer, if it has weights: a map needs no others."""
    before = {weight: weight.requires_grad for weight in model.parameters()}
    kept = set(layer.parameters())
    try:
        for weight in before:
            weight.requires_grad_(weight in kept or not kept)
        yield
    finally:
        for weight, flag in before.items():
            weight.requires_grad_(flag)


def enlarge(raw: np.ndarray, size: int) -> np.ndarray:
    """Resize one map bilinearly: (h, w) -> (size, size)."""
    return np.asarray(Image.fromarray(raw.astype(np.float32), mode="F").resize((size, size), Image.Resampling.BILINEAR))


def overlay(image: np.ndarray, raw: np.ndarray, top: float | None = None) -> np.ndarray:
    """Lay a map over its image, blue low and red high.

    Args:
        image: uint8, (size, size, 3), as the result.
        raw: (h, w), from `raw_maps`.
        top: the value shown as full red; by default the map's maximum.
    """
    top = float(raw.max()) if top is None else top
    heat = enlarge(raw, image.shape[0]) / top if top > 0 else np.zeros(image.shape[:2], np.float32)
    return show_cam_on_image(image.astype(np.float32) / 255, np.clip(heat, 0, 1), use_rgb=True)


def png(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
