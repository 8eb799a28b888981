"""Resamples: stratified, of whole groups, in blocks of bounded size."""

import numpy as np
import pytest

from dfganext.evaluation import bootstrap


def test_resamples_draw_each_class_as_often_as_it_occurs():
    labels = np.array([0] * 7 + [1] * 3)
    weights = bootstrap.resamples(labels, None, 500, seed=1)
    assert (weights[:, labels == 0].sum(axis=1) == 7).all() and (weights[:, labels == 1].sum(axis=1) == 3).all()
    # a draw is binomial: mean 1, variance 1 - 1/n
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)
    assert weights[:, 0].var() == pytest.approx(6 / 7, abs=0.15)


@pytest.mark.parametrize("mixed", [False, True])
def test_resamples_draw_whole_groups(mixed):
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    groups = np.array([5, 5, 9, 9, 5 if mixed else 2, 2, 3, 3])
    weights = bootstrap.resamples(labels, groups, 200, seed=1)
    for group in np.unique(groups):
        assert (np.ptp(weights[:, groups == group], axis=1) == 0).all()
    assert (weights[:, labels == 0].sum(axis=1) > 0).all() and (weights[:, labels == 1].sum(axis=1) > 0).all()
    assert (weights[:, 0] == 1).all() == mixed, "the one group that holds both classes is drawn once"


def test_blocks_add_up_to_the_number_of_resamples(monkeypatch):
    labels, seen = np.array([0, 1] * 50), []

    def statistics(weights):
        seen.append(len(weights))
        return {"mean": weights[:, 0]}

    monkeypatch.setattr(bootstrap, "BLOCK", 100 * 300)
    bootstrap.distribution(labels, statistics, count=1000)
    assert seen == [300, 300, 300, 100]
