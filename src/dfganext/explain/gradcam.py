"""Grad-CAM (Selvaraju et al. 2017) on the last block of the last stage, by pytorch-grad-cam, without its rescaling.

pytorch-grad-cam rescales each map to 0...1, which hides its intensity. Here a map stays as computed, at the block's resolution.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from torch import Tensor, nn
from tqdm import tqdm

from dfganext.labels import ALL, FAKE
from dfganext.models.batches import batches
from dfganext.models.classifier import ClassifierConfig, map_layer, preprocess, to_grid

BATCH = 16

Target = Callable[[Tensor], Tensor]
"""The scalar that a map explains, from the model's output for one image."""


class RawGradCAM(GradCAM):
    """GradCAM whose result is the raw map, (N, h, w) at the resolution of the layer."""

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: list, eigen_smooth: bool) -> list[np.ndarray]:
        activations = self.activations_and_grads.activations[0].numpy()
        gradients = self.activations_and_grads.gradients[0].numpy()
        cam = self.get_cam_image(input_tensor, self.target_layers[0], targets, activations, gradients, eigen_smooth)
        return [np.maximum(cam, 0)]

    def aggregate_multi_layers(self, cam_per_target_layer: list[np.ndarray]) -> np.ndarray:
        return cam_per_target_layer[0]

    def of_targets(self, images: Tensor, targets: Sequence[Sequence[Target]]) -> list[np.ndarray]:
        """The maps for each of several targets per image, after one forward pass."""
        outputs = self.activations_and_grads(images)
        maps = []
        for one in targets:
            scores = [target(output) for target, output in zip(one, outputs, strict=True)]
            torch.stack(scores).sum().backward(retain_graph=True)
            maps += self.compute_cam_per_layer(images, list(one), eigen_smooth=False)
        return maps


def target_logit(label: int) -> Target:
    """The class's logit; with one logit, plus or minus it."""

    def logit(output: Tensor) -> Tensor:
        if len(output) == 1:
            return output[0] if label == FAKE else -output[0]
        return output[label]

    return logit


def raw_maps(
    model: nn.Module, config: ClassifierConfig, images: np.ndarray, labels: Sequence[int] | np.ndarray
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
    return np.concatenate([found for (found,) in _maps(model, config, images, [np.asarray(labels)])])


def maps_of_both(model: nn.Module, config: ClassifierConfig, images: np.ndarray) -> np.ndarray:
    """`raw_maps` of each image for either class: float32, (2, N, h, w), real first."""
    found = _maps(model, config, images, [np.full(len(images), label) for label in ALL])
    shown = tqdm(found, "Grad-CAM", math.ceil(len(images) / BATCH), unit="batch", disable=None)
    return np.concatenate(list(map(np.stack, shown)), axis=1)


def _maps(
    model: nn.Module, config: ClassifierConfig, images: np.ndarray, targets: Sequence[np.ndarray]
) -> Iterator[list[np.ndarray]]:
    """For each batch of images, its maps for each of `targets`, which have a class per image."""
    layer, device = map_layer(model), next(model.parameters()).device
    with _gradients_at(model, layer), RawGradCAM(model, [layer], partial(to_grid, model=model)) as cam:
        for part, batch in batches(images, BATCH, device):
            wanted = [[target_logit(int(label)) for label in labels[part]] for labels in targets]
            yield [one.astype(np.float32) for one in cam.of_targets(preprocess(batch, config), wanted)]


@contextmanager
def _gradients_at(model: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Compute gradients down to the output of this layer, and no further: a map needs no others."""
    before = {weight: weight.requires_grad for weight in model.parameters()}
    for weight in before:
        weight.requires_grad_(False)
    try:
        with layer.register_forward_hook(lambda _, __, output: output.detach().requires_grad_()):
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
