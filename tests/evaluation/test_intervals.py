"""Intervals against published values, definitions written out, and their own promise: how often they hold the truth."""

from functools import partial
from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from dfganext.evaluation import intervals, metrics


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.5160, 0.494, 0.538), (0.5520, 0.530, 0.574), (0.9950, 0.9908, 0.9973)]
)
def test_wilson_of_the_papers_accuracies(share, low, high):
    found = intervals.wilson(share * 2000, 2000)
    assert found == pytest.approx([low, high], abs=1e-3 if share < 0.9 else 1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (3, 7), (150, 160)])
def test_wilson_agrees_with_scipy(successes, trials):
    exact = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert intervals.wilson(successes, trials) == pytest.approx([exact.low, exact.high], abs=1e-12)


def test_wilson_needs_a_trial():
    with pytest.raises(ValueError, match="at least one trial"):
        intervals.wilson(0, 0)


def test_resamples_draw_each_class_as_often_as_it_occurs():
    labels = np.array([0] * 7 + [1] * 3)
    weights = intervals.resamples(labels, 500, seed=1)
    assert (weights[:, labels == 0].sum(axis=1) == 7).all() and (weights[:, labels == 1].sum(axis=1) == 3).all()
    # a draw is binomial: mean 1, variance 1 - 1/n
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)
    assert weights[:, 0].var() == pytest.approx(6 / 7, abs=0.15)


@pytest.mark.parametrize("grain", [None, 0.5, 2.0])
def test_weighted_figures_are_those_of_the_images_drawn(grain):
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat([0, 1], 40))
    scores = rng.normal(size=80) + labels
    scores = scores if grain is None else np.round(scores / grain) * grain
    p = 1 / (1 + np.exp(-scores))
    weights = intervals.resamples(labels, 12, seed=2)
    ranked = metrics.ranking_weighted(labels, scores, weights)
    judged = metrics.at_threshold_weighted(labels, scores, 0.4, weights)
    probable = metrics.probability_weighted(labels, p, weights)
    for one, drawn in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(80), drawn)  # the resample written out
        expected = metrics.ranking(labels[rows], scores[rows])
        for name, values in ranked.items():
            assert values[one] == pytest.approx(expected[name], abs=1e-12), name
        assert ranked["roc_auc"][one] == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=drawn))
        assert ranked["average_precision"][one] == pytest.approx(
            sk.average_precision_score(labels, scores, sample_weight=drawn)
        )
        for name, values in judged.items():
            assert values[one] == pytest.approx(metrics.at_threshold(labels[rows], scores[rows], 0.4)[name]), name
        for name, values in probable.items():
            assert values[one] == pytest.approx(metrics.probability(labels[rows], p[rows])[name]), name


def test_interval_of_the_auc_is_as_wide_as_hanley_and_mcneil_say():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 300)
    scores = rng.normal(size=600) + labels
    auc = sk.roc_auc_score(labels, scores)
    low, high = intervals.roc_auc(labels, scores)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = np.sqrt((auc * (1 - auc) + 299 * (q1 - auc**2) + 299 * (q2 - auc**2)) / 300**2)
    assert [low, high] == pytest.approx([auc - 1.96 * error, auc + 1.96 * error], abs=0.01)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth, held = stats.norm.cdf(1 / np.sqrt(2)), 0
    labels = np.repeat([0, 1], 60)
    for seed in range(100):
        scores = np.random.default_rng(seed).normal(size=120) + labels
        low, high = intervals.roc_auc(labels, scores, count=400, seed=seed)
        held += low <= truth <= high
    assert 87 <= held <= 100


def test_blocks_give_as_many_resamples_as_were_asked_for(monkeypatch):
    labels, seen = np.array([0, 1] * 50), []

    def figures(weights):
        seen.append(len(weights))
        return {"mean": weights[:, 0]}

    monkeypatch.setattr(intervals, "BLOCK", 100 * 300)
    intervals.bootstrap(labels, figures, count=1000)
    assert seen == [300, 300, 300, 100]


def test_paired_difference_of_a_model_with_itself_is_nothing():
    labels = np.array([0, 1] * 30)
    figures = partial(metrics.ranking_weighted, labels, np.random.default_rng(1).normal(size=60))
    assert intervals.difference(labels, figures, figures, count=50)["roc_auc"] == [0, 0]


def test_paired_difference_is_narrower_than_the_two_apart():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 100)
    common = rng.normal(size=200) + labels
    first, second = common + 0.1 * rng.normal(size=200), common + 0.1 * rng.normal(size=200)
    gap = intervals.difference(
        labels, *(partial(metrics.ranking_weighted, labels, scores) for scores in (first, second))
    )["roc_auc"]
    low, high = intervals.roc_auc(labels, first)
    assert gap[1] - gap[0] < 0.3 * (high - low) and gap[0] < 0 < gap[1]


@pytest.mark.parametrize(("first", "second"), list(product([0, 1, 4, 9], [0, 2, 7])))
def test_mcnemar_is_the_two_sided_binomial_tail(first, second):
    right = np.array([True] * first + [False] * second + [True] * 5)
    other = np.array([False] * first + [True] * second + [True] * 5)
    total, least = first + second, min(first, second)
    expected = min(1, 2 * sum(comb(total, k) for k in range(least + 1)) / 2**total)
    found = intervals.mcnemar(right, other)
    assert (found["only_first"], found["only_second"]) == (first, second)
    assert found["p"] == pytest.approx(expected)
