"""Deletion and insertion on a network that uses one known part of the image."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dfganext.explain import faithfulness
from dfganext.models.classifier import ClassifierConfig

SIZE = 32
CONFIG = ClassifierConfig("by hand", "bce", SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class CornerNetwork(nn.Module):
    """Logit of "fake": mean brightness of the upper left quarter minus a half, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        return self.scale * (images[:, :, : SIZE // 2, : SIZE // 2].mean(dim=(1, 2, 3)) - 0.5)[:, None]


@pytest.fixture
def pictures():
    """Black images whose upper left quarter is just bright enough for "fake"; a blur makes it too dark."""
    images = np.zeros((6, SIZE, SIZE, 3), np.uint8)
    images[:, : SIZE // 2, : SIZE // 2] = 150
    maps = np.zeros((6, 4, 4), np.float32)
    maps[:, :2, :2] = 1
    return images, maps


def test_a_true_map_is_better_than_uninformed_maps(pictures):
    images, maps = pictures
    areas, _ = faithfulness.curves(CornerNetwork(), CONFIG, images, maps, np.ones(6, int), seed=1)
    by_ranking = areas.groupby(["curve", "ranking"]).auc.mean()
    for ranking in faithfulness.BASELINES:
        assert by_ranking["deletion", "gradcam"] < by_ranking["deletion", ranking] - 0.1
        assert by_ranking["insertion", "gradcam"] > by_ranking["insertion", ranking] + 0.01
    found = faithfulness.against(areas).set_index(["curve", "ranking"])
    assert (found.loc["deletion"].high < 0).all() and (found.loc["insertion"].low > 0).all()
    assert found.loc[("deletion", "centred"), "p"] == 2 / 2**6, "six differences of one sign"


def test_curves_start_and_end_at_the_original_and_the_baseline(pictures):
    images, maps = pictures
    network = CornerNetwork()
    _, means = faithfulness.curves(network, CONFIG, images, maps, np.ones(6, int), steps=8)
    assert sorted(set(means.fraction)) == pytest.approx(np.linspace(0, 1, 9))

    def probability(image):
        value = image[: SIZE // 2, : SIZE // 2].mean() / 255
        return 1 / (1 + np.exp(-20 * (value - 0.5)))

    whole, flat = probability(images[0]), probability(np.full((SIZE, SIZE, 3), round(images[0, ..., 0].mean())))
    for _, rows in means[means.curve == "deletion"].groupby("ranking"):
        assert rows.probability.iloc[0] == pytest.approx(whole, abs=1e-4)
        assert rows.probability.iloc[-1] == pytest.approx(flat, abs=1e-3)
    for _, rows in means[means.curve == "insertion"].groupby("ranking"):
        assert rows.probability.iloc[-1] == pytest.approx(whole, abs=1e-4)


def test_areas_are_those_under_the_mean_curves(pictures):
    images, maps = pictures
    areas, means = faithfulness.curves(CornerNetwork(), CONFIG, images, maps, np.ones(6, int))
    for (curve, ranking), rows in means.groupby(["curve", "ranking"]):
        area = np.sum((rows.probability.to_numpy()[1:] + rows.probability.to_numpy()[:-1]) / 2 / 16)
        of_images = areas[(areas.curve == curve) & (areas.ranking == ranking)].auc.mean()
        assert of_images == pytest.approx(area)


def test_the_other_class_has_the_other_probability(pictures):
    images, maps = pictures
    fake, real = (
        faithfulness.curves(CornerNetwork(), CONFIG, images, maps, np.full(6, target))[1].probability
        for target in (1, 0)
    )
    np.testing.assert_allclose(fake + real, 1, atol=1e-6)


def test_a_blank_map_equals_a_random_map(pictures):
    images, _ = pictures
    areas, _ = faithfulness.curves(CornerNetwork(), CONFIG, images, np.zeros((6, 4, 4)), np.ones(6, int))
    by_ranking = areas.pivot(index=["image", "curve"], columns="ranking", values="auc")
    assert (by_ranking.gradcam == by_ranking.random).all() and (by_ranking.gradcam != by_ranking.centred).all()


def test_no_difference_at_all():
    areas = pd.DataFrame(
        [
            {"image": n, "curve": curve, "ranking": ranking, "auc": 0.5}
            for n in range(3)
            for curve in faithfulness.CURVES
            for ranking in faithfulness.RANKINGS
        ]
    )
    found = faithfulness.against(areas)
    assert (found.p == 1).all() and (found.difference == 0).all()
