"""Grad-CAM against the formula written out with autograd, and against pytorch-grad-cam's rescaled maps."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import BinaryClassifierOutputTarget, ClassifierOutputTarget

from dfganext.explain import gradcam, statistics
from dfganext.models import classifier
from dfganext.settings import Face

FACE = Face(0.5, 0.5, 0.6, 0.8)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def a_model(loss: str, architecture: str = "test_convnext"):
    model, config = classifier.build(architecture, loss, 64, seed=1)
    return model.eval(), config


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("label", [0, 1])
def test_raw_maps_by_the_formula(loss, label, monkeypatch):
    monkeypatch.setattr(gradcam, "BATCH", 2)
    model, config = a_model(loss)
    found = gradcam.raw_maps(model, config, IMAGES, [label] * len(IMAGES))
    kept = {}
    handle = classifier.map_layer(model).register_forward_hook(lambda _, __, output: kept.update(a=output))
    for image, raw in zip(IMAGES, found, strict=True):
        output = model(classifier.preprocess(torch.from_numpy(image[None]), config))[0]
        score = output[label] if loss == "ce" else output[0] * (1 if label else -1)
        (gradient,) = torch.autograd.grad(score, kept["a"])
        weights = gradient.mean(dim=(2, 3), keepdim=True)  # (1, C, 1, 1)
        expected = (weights * kept["a"]).sum(dim=1).relu()[0].detach().numpy()
        np.testing.assert_allclose(raw, expected, atol=1e-6)
    handle.remove()


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_maps_of_both_classes_are_those_of_each(loss):
    model, config = a_model(loss)
    both = gradcam.maps_of_both(model, config, IMAGES)
    assert len(both) == 2 and not np.array_equal(*both)
    for label, found in enumerate(both):
        np.testing.assert_array_equal(found, gradcam.raw_maps(model, config, IMAGES, [label] * len(IMAGES)))


@pytest.mark.parametrize(
    ("loss", "target"), [("ce", ClassifierOutputTarget(1)), ("bce", BinaryClassifierOutputTarget(1))]
)
def test_raw_maps_correlate_with_the_librarys_rescaled_maps(loss, target):
    model, config = a_model(loss)
    batch = classifier.preprocess(torch.from_numpy(IMAGES), config)
    library = GradCAM(model=model, target_layers=[classifier.map_layer(model)])(batch, [target] * len(IMAGES))
    for raw, other in zip(gradcam.raw_maps(model, config, IMAGES, [1] * 5), library, strict=True):
        if raw.max() > 0:
            assert np.corrcoef(gradcam.enlarge(raw, 64).ravel(), other.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("architecture", ["test_convnext", "convnext_tiny", "test_efficientnet"])
def test_gradients_stop_at_the_layer_and_requires_grad_is_restored(architecture, monkeypatch):
    model, config = a_model("ce", architecture)
    model.get_classifier().bias.requires_grad_(False)
    before = [weight.requires_grad for weight in model.parameters()]
    found = gradcam.raw_maps(model, config, IMAGES[:2], [1, 0])
    assert [weight.requires_grad for weight in model.parameters()] == before
    assert all(weight.grad is None for weight in model.parameters())
    monkeypatch.setattr(gradcam, "_gradients_at", lambda model, block: nullcontext())
    np.testing.assert_allclose(found, gradcam.raw_maps(model, config, IMAGES[:2], [1, 0]), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "side", "layer"),
    [
        ("test_efficientnet", 2, "blocks.4.0"),  # (N, C, h, h)
        ("test_mambaout", 2, "stages.3.blocks.0"),  # (N, h, h, C)
        ("test_vit", 4, "blocks.5.norm1"),  # (N, 1 + h h, C)
        ("deit_tiny_distilled_patch16_224", 4, "blocks.11.norm1"),  # (N, 2 + h h, C)
        ("pvt_v2_b0", 2, "stages.3.blocks.1"),  # (N, h h, C)
    ],
)
def test_other_architectures_by_the_formula(architecture, side, layer):
    model, config = a_model("ce", architecture)
    found = gradcam.raw_maps(model, config, IMAGES, [1] * 5)
    assert found.shape == (5, side, side) and (found > 0).any()
    kept = {}
    with model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.update(a=output)):
        score = model(classifier.preprocess(torch.from_numpy(IMAGES), config))[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, kept["a"])
    features, gradient = (part.detach().numpy() for part in (kept["a"], gradient))
    if features.ndim == 3:  # tokens; class tokens come first
        rows = slice(features.shape[1] - side**2, None)
        features, gradient = (part[:, rows].reshape(5, side, side, -1) for part in (features, gradient))
    if features.shape[3] != side:
        features, gradient = features.transpose(0, 3, 1, 2), gradient.transpose(0, 3, 1, 2)
    expected = np.maximum((gradient.mean(axis=(2, 3), keepdims=True) * features).sum(axis=1), 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_overlay_is_blue_low_and_red_high():
    raw = np.zeros((2, 2), np.float32)
    raw[0, 0] = 3
    shown = gradcam.overlay(np.full((32, 32, 3), 128, np.uint8), raw)
    assert shown.shape == (32, 32, 3) and shown.dtype == np.uint8
    assert shown[0, 0, 0] > shown[0, 0, 2] and shown[-1, -1, 2] > shown[-1, -1, 0]
    blank = gradcam.overlay(np.full((32, 32, 3), 128, np.uint8), np.zeros((2, 2)))
    assert (blank[..., 2] > blank[..., 0]).all()


def test_statistics_of_known_maps():
    maps = np.zeros((3, 4, 4))
    maps[0] = 2.0
    maps[1, 0, 0] = 5.0
    table = statistics.describe(maps, FACE)
    assert set(table.columns) == set(statistics.NAMES)
    assert table.entropy[:2].tolist() == pytest.approx([1, 0]) and table.above_half[:2].tolist() == [1, 1 / 16]
    assert table.maximum.tolist() == [2, 5, 0] and table["mean"].tolist() == pytest.approx([2, 5 / 16, 0])
    assert np.isnan(table.entropy[2]) and np.isnan(table.above_half[2])
    means = statistics.means(table.assign(label=["real", "real", "fake"], target="real"))["real"]
    assert means["real"]["entropy"] == pytest.approx(0.5) and means["fake"]["maximum"] == 0
    assert means["fake"]["entropy"] is None, "no map has one"
    assert np.isnan(statistics.describe(np.ones((1, 1, 1)), FACE).entropy[0]), "one cell cannot spread"
