"""Shuffled weights keep their values but not their order; similarity is a rank correlation."""

import numpy as np
import pytest
import torch

from dfganext.explain import gradcam, sanity
from dfganext.models import classifier


@pytest.fixture(scope="module")
def model():
    return classifier.build("test_convnext", "ce", 64, seed=1)[0]


def test_all_weights_are_shuffled_and_the_model_is_unchanged(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = sanity.randomise(model, seed=0, depth="all")
    for name, value in other.named_parameters():
        torch.testing.assert_close(value.flatten().sort().values, before[name].flatten().sort().values)
        if value.numel() > 50 and len(value.unique()) > 1:
            assert not torch.equal(value, before[name]), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_the_head(model):
    other = sanity.randomise(model, seed=0, depth="head")
    head = {id(weight) for weight in other.get_classifier().parameters()}
    changed = [
        id(new) in head
        for new, old in zip(other.parameters(), model.parameters(), strict=True)
        if not torch.equal(new, old)
    ]
    assert changed and all(changed)


@pytest.mark.parametrize("architecture", ["levit_128s", "deit_tiny_distilled_patch16_224"])
def test_other_architectures(architecture):
    """LeViT caches values computed from its weights; DeiT has two heads."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    model, config = classifier.build(architecture, "ce", 64)
    before = classifier.predict_logits(model, config, pixels)
    gradcam.raw_maps(model, config, pixels, [1, 1])
    for depth in sanity.DEPTHS:
        other = sanity.randomise(model, 0, depth)
        assert not np.allclose(classifier.predict_logits(other, config, pixels), before)
    np.testing.assert_allclose(classifier.predict_logits(model, config, pixels), before, atol=1e-6)


def test_the_seed_decides(model):
    one, two, three = (sanity.randomise(model, seed, "all").state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_similarity_of_ranks():
    rng = np.random.default_rng(0)
    maps = rng.random((4, 3, 3))
    ranks = np.argsort(np.argsort(maps[2].ravel())), np.argsort(np.argsort(maps[3].ravel()))
    other = np.stack([np.exp(maps[0]), -maps[1], maps[3], np.ones((3, 3))])
    found = sanity.similarity(maps, other)
    assert found[0] == pytest.approx(1) and found[1] == pytest.approx(-1) and np.isnan(found[3])
    assert found[2] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_after_randomising_every_image_has_a_similarity_at_each_depth(model):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    config = classifier.build("test_convnext", "ce", 64, seed=1)[1]
    maps = gradcam.maps_of_both(model, config, pixels)
    assert maps.shape[:2] == (2, 3) and not np.array_equal(maps[0], maps[1])
    targets = np.array([1, 0, 1])
    own = maps[targets, np.arange(3)]
    table = sanity.after_randomising(model, config, pixels, own, targets, seed=0)
    assert table.depth.tolist() == ["head"] * 3 + ["all"] * 3 and table.image.tolist() == [0, 1, 2] * 2
    other = gradcam.raw_maps(sanity.randomise(model, 0, "all"), config, pixels, targets)
    np.testing.assert_array_equal(table.similarity[3:], sanity.similarity(own, other))
