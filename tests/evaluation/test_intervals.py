"""Intervals against published values, definitions written out, and their coverage of true values."""

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


PERFECT = np.repeat([0, 1], 80), np.repeat([0.1, 0.9], 80) + np.linspace(0, 0.05, 160)
"""Labels, and scores that separate the classes without error."""


def drawn(size, d, seed, classes=(0, 1)):
    labels = np.repeat(classes, size)
    return labels, np.random.default_rng(seed).normal(size=2 * size) + d * labels


def delong_by_hand(labels, scores):
    """ROC AUC and its variance, pair by pair (DeLong 1988)."""
    wins = np.array([[(f > r) + (f == r) / 2 for r in scores[labels == 0]] for f in scores[labels == 1]])
    by_fake, by_real = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), by_fake.var() / len(by_fake) + by_real.var() / len(by_real)


def test_interval_of_the_roc_auc_is_as_wide_as_delongs():
    labels, scores = drawn(300, 1, 5)
    for one in (scores, np.round(scores)):
        area, variance = delong_by_hand(labels, one)
        low, high = intervals.roc_auc(labels, one)
        assert [low, high] == pytest.approx([area - 1.96 * variance**0.5, area + 1.96 * variance**0.5], abs=0.004)
        low, high = intervals.roc_auc(labels, -one)
        assert [1 - high, 1 - low] == pytest.approx(intervals.roc_auc(labels, one), abs=1e-9)


def test_a_perfect_separation_is_not_certain():
    labels, scores = PERFECT
    ranked = intervals.average_precision_and_eer(labels, scores)
    assert intervals.roc_auc(labels, scores) == pytest.approx([1 - 0.0451, 1], abs=1e-3)
    assert ranked["average_precision"] == pytest.approx([1 - 0.0451, 1], abs=1e-3)
    assert ranked["eer"] == pytest.approx([0, 0.0451], abs=1e-3)
    assert intervals.f1(labels, scores > 0.5) == pytest.approx([0.9766, 1], abs=1e-3), "80 of 80, by Wilson"
    assert intervals.roc_auc(labels, -scores) == pytest.approx([0, 0.0451], abs=1e-3)


def test_eighty_real_images_cannot_bound_a_false_positive_rate_of_one_in_200():
    labels, scores = PERFECT
    assert intervals.tpr_at_fpr(labels, scores, 0.005) == [0, 1]
    labels = np.repeat([0, 1], [1000, 80])
    scores = np.concatenate([np.random.default_rng(0).uniform(size=1000), np.full(80, 2.0)])
    low, high = intervals.tpr_at_fpr(labels, scores, 0.005)
    assert low == pytest.approx(0.0125 ** (1 / 80)) and high == 1


def test_true_positive_rate_at_a_false_positive_rate_is_inside_its_interval():
    for seed in range(20):
        labels, scores = drawn(500, 2, seed)
        for name, rate in metrics.FALSE_POSITIVE_RATES.items():
            low, high = intervals.tpr_at_fpr(labels, scores, rate)
            assert low < metrics.ranking(labels, scores)[name] < high < 1


def test_probabilities_without_errors_leave_room_for_errors():
    labels, scores = PERFECT
    found = intervals.probability(labels, (scores > 0.5).astype(float))
    assert found["brier"] == pytest.approx([0, 0.0234], abs=1e-3), "Wilson's upper end of 0 errors in 160"
    assert found["ece"] == pytest.approx([0, 0.0234], abs=1e-3)
    assert found["log_loss"] == pytest.approx([0, 0.0234 * 36.04], abs=1e-2)


@pytest.mark.parametrize("size", [40, 80])
@pytest.mark.parametrize("truth", [0.75, 0.95, 0.99, 0.999])
def test_intervals_of_the_roc_auc_cover(truth, size):
    """A small part of benchmarks/coverage.py. A bootstrap covers a true value of 0.999 in only 35 % of samples of 40 and 40 images."""
    distance, held = stats.norm.ppf(truth) * np.sqrt(2), 0
    for seed in range(200):
        low, high = intervals.roc_auc(*drawn(size, distance, seed))
        held += low <= truth <= high
    assert held >= 186


def test_images_in_groups_count_as_groups():
    rng = np.random.default_rng(7)
    labels, scores = drawn(60, 1, 7)
    groups = np.arange(120)
    copied, copies = np.tile(scores, 4), np.tile(groups, 4)  # each image four times
    copied_labels = np.tile(labels, 4)
    for method in (intervals.roc_auc, lambda *given: intervals.tpr_at_fpr(given[0], given[1], 0.1, given[2])):
        once, alone, together = (
            method(*given)
            for given in ((labels, scores, groups), (copied_labels, copied, None), (copied_labels, copied, copies))
        )
        assert together == pytest.approx(once, abs=1e-9) and alone[1] - alone[0] < 0.75 * (once[1] - once[0])
    right = rng.random(120) < 0.9
    assert intervals.proportion(np.tile(right, 4), copies) == pytest.approx(intervals.proportion(right), abs=1e-12)
    assert intervals.proportion(right, groups) == intervals.wilson(right.sum(), 120)
    one = intervals.average_precision_and_eer(labels, scores, groups)
    four = intervals.average_precision_and_eer(copied_labels, copied, copies)
    for name in one:
        assert four[name] == pytest.approx(one[name], abs=0.02)
    values = rng.normal(size=120)
    assert intervals.mean(np.tile(values, 4), copies) == pytest.approx(intervals.mean(values))


def test_groups_of_dissimilar_images_hardly_widen_an_interval():
    rng = np.random.default_rng(8)
    hits, groups = rng.random(4000) < 0.7, np.arange(4000) // 4
    assert intervals.proportion(hits, groups) == pytest.approx(intervals.proportion(hits), abs=2e-3)


def test_a_mean_has_students_interval():
    values = np.random.default_rng(1).normal(size=12)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert intervals.mean(values) == pytest.approx(expected)
    assert intervals.mean(values, np.zeros(12)) == [-np.inf, np.inf]


def test_folds_are_not_compared_with_each_other():
    labels, scores = drawn(90, 1, 3)
    folds = np.arange(180) % 3
    shifted = scores + 10 * folds  # would change comparisons across folds
    assert intervals.roc_auc(labels, shifted, folds=folds) == pytest.approx(
        intervals.roc_auc(labels, scores, folds=folds)
    )
    assert intervals.roc_auc(labels, scores, folds=folds) == pytest.approx(intervals.roc_auc(labels, scores), abs=0.02)


@pytest.mark.parametrize("metric", ["roc_auc", "accuracy"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_paired_difference_of_models_that_agree_is_not_certain(metric, shuffled):
    labels, scores = PERFECT
    scores = np.random.default_rng(0).permutation(scores) if shuffled else scores
    found = intervals.paired_difference(labels, scores, scores, metric)
    low, high = found["interval"]
    assert found["difference"] == 0 and low < -0.005 and high > 0.005 and high < 0.06


def test_a_paired_difference_of_accuracies_is_bonett_and_prices():
    first = np.repeat([True, True, False, False], [60, 8, 3, 9])
    second = np.repeat([True, False, True, False], [60, 8, 3, 9])
    more, less = 9 / 82, 4 / 82  # 8 and 3 of 80 images, one added to each
    half = 1.959964 * np.sqrt((more + less - (more - less) ** 2) / 82)
    found = intervals.accuracy_difference(first, second)
    assert found["difference"] == pytest.approx(5 / 80)
    assert found["interval"] == pytest.approx([more - less - half, more - less + half], abs=1e-6)
    labels = np.ones(80, int)
    same = intervals.paired_difference(labels, first * 0.3, second * 0.8, "accuracy", thresholds=(0.2, 0.7))
    assert same == found


def test_a_paired_difference_of_log_losses_is_students_within_classes():
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], 100)
    first, second = rng.uniform(0.05, 0.95, (2, 200))
    gaps = np.array(
        [-np.log(a if y else 1 - a) + np.log(b if y else 1 - b) for y, a, b in zip(labels, first, second, strict=True)]
    )
    found = intervals.paired_difference(labels, first, second, "log_loss")
    error = np.sqrt((gaps[:100].var() + gaps[100:].var()) / 2 / 199)
    half = stats.t.ppf(0.975, 199) * error
    assert found["difference"] == pytest.approx(sk.log_loss(labels, first) - sk.log_loss(labels, second))
    assert found["interval"] == pytest.approx([gaps.mean() - half, gaps.mean() + half])


def test_a_paired_difference_of_areas_is_narrower_than_the_two_apart():
    labels, common = drawn(100, 1, 2)
    rng = np.random.default_rng(2)
    first, second = common + 0.1 * rng.normal(size=200), common + 0.1 * rng.normal(size=200)
    found = intervals.paired_difference(labels, first, second, "roc_auc")
    low, high = intervals.roc_auc(labels, first)
    assert found["difference"] == pytest.approx(sk.roc_auc_score(labels, first) - sk.roc_auc_score(labels, second))
    assert found["interval"][1] - found["interval"][0] < 0.3 * (high - low)
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    reverse = intervals.paired_difference(labels, second, first, "roc_auc")
    assert reverse["interval"] == pytest.approx([-found["interval"][1], -found["interval"][0]])


@pytest.mark.parametrize("metric", ["roc_auc", "accuracy", "log_loss"])
def test_a_paired_difference_of_copies_is_as_wide_as_that_of_the_originals(metric):
    labels, scores = drawn(50, 1, 6)
    first, second = (1 / (1 + np.exp(-scores - shift)) for shift in np.random.default_rng(6).normal(size=(2, 100)))
    once = intervals.paired_difference(labels, first, second, metric)["interval"]
    copied = [np.tile(values, 3) for values in (labels, first, second)]
    grouped = intervals.paired_difference(*copied, metric, groups=np.tile(np.arange(100), 3))["interval"]
    assert grouped == pytest.approx(once, abs=1e-9)


@pytest.mark.parametrize(("first", "second"), list(product([0, 1, 4, 9], [0, 2, 7])))
def test_mcnemar_is_the_two_sided_binomial_tail(first, second):
    right = np.array([True] * first + [False] * second + [True] * 5)
    other = np.array([False] * first + [True] * second + [True] * 5)
    total, least = first + second, min(first, second)
    expected = min(1, 2 * sum(comb(total, k) for k in range(least + 1)) / 2**total)
    found = intervals.mcnemar(right, other)
    assert (found["only_first"], found["only_second"]) == (first, second)
    assert found["p"] == pytest.approx(expected)
