"""Metrics against definitions written out, and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from dfganext.evaluation import evaluate, metrics


def scores(seed: int, n: int = 400, apart: float = 1.0, grain: float | None = None):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1], n // 2))
    values = rng.normal(size=n) + apart * labels
    return labels, values if grain is None else np.round(values / grain) * grain


@pytest.mark.parametrize("seed", range(4))
def test_at_threshold_agrees_with_scikit_learn(seed):
    labels, values = scores(seed)
    found = metrics.at_threshold(labels, values, 0.3)
    predicted = values > 0.3
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["precision"] == pytest.approx(sk.precision_score(labels, predicted))
    assert found["recall"] == pytest.approx(sk.recall_score(labels, predicted))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, predicted))


def test_nothing_predicted_fake():
    found = metrics.at_threshold(np.array([0, 1]), np.array([0.1, 0.2]), 0.5)
    assert (found["precision"], found["f1"], found["accuracy"]) == (0, 0, 0.5)


@pytest.mark.parametrize("grain", [None, 0.5])
def test_roc_auc_is_the_share_of_pairs_in_order(grain):
    labels, values = scores(1, 120, grain=grain)
    pairs = np.subtract.outer(values[labels == 1], values[labels == 0])
    found = metrics.ranking(labels, values)
    assert found["roc_auc"] == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-12)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, values), abs=1e-12)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(labels, values), abs=1e-12)


@pytest.mark.parametrize("grain", [None, 0.5, 2.0])
def test_weights_count_images_as_often_as_they_were_drawn(grain):
    labels, values = scores(3, 80, grain=grain)
    p = 1 / (1 + np.exp(-values))
    drawn = np.random.default_rng(2).integers(0, 4, (12, 80))
    ranked, probable = metrics.ranking(labels, values, drawn), metrics.probability(labels, p, drawn)
    for one, counts in enumerate(drawn):
        rows = np.repeat(np.arange(80), counts)  # the resample written out
        for found, alone in (
            (ranked, metrics.ranking(labels[rows], values[rows])),
            (probable, metrics.probability(labels[rows], p[rows])),
        ):
            assert {name: column[one] for name, column in found.items()} == pytest.approx(alone, abs=1e-12)
        for name, reference in (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
            assert ranked[name][one] == pytest.approx(reference(labels, values, sample_weight=counts), abs=1e-12)
        assert probable["log_loss"][one] == pytest.approx(sk.log_loss(labels, p, sample_weight=counts))
        assert probable["brier"][one] == pytest.approx(sk.brier_score_loss(labels, p, sample_weight=counts))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_model_has_no_metrics(bad):
    labels, values = scores(0, 10)
    values[3] = bad
    for metric in (metrics.ranking, metrics.probability, metrics.log_loss):
        with pytest.raises(ValueError, match="NaN or infinity"):
            metric(labels, values)


@pytest.mark.parametrize("grain", [None, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_eer_is_where_the_error_rates_meet(seed, grain):
    labels, values = scores(seed, grain=grain)
    eer = metrics.ranking(labels, values)["eer"]
    fpr, tpr, _ = sk.roc_curve(labels, values, drop_intermediate=False)
    # bisection for the point of the ROC polygon with x = 1 - y
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # the upper envelope at x: the top of a vertical segment
        top = max(np.interp(middle, fpr, tpr), tpr[fpr <= middle].max())
        low, high = (middle, high) if middle < 1 - top else (low, middle)
    assert eer == pytest.approx(high, abs=1e-2 if grain else 5e-3)
    assert 0 <= eer <= 0.5


def test_eer_of_perfect_and_of_useless_scores():
    labels = np.array([0, 0, 1, 1])
    assert metrics.ranking(labels, np.array([0.1, 0.2, 0.8, 0.9]))["eer"] == 0
    assert metrics.ranking(labels, np.full(4, 0.5))["eer"] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_the_best_of_all(seed):
    labels, values = scores(seed, 60, grain=0.1)
    found = metrics.best_threshold(labels, values, preferred=0.0)

    def balanced(threshold):
        predicted = values > threshold
        return predicted[labels == 1].mean() + (~predicted)[labels == 0].mean()

    every = [balanced(threshold) for threshold in np.linspace(values.min() - 1, values.max() + 1, 4001)]
    assert balanced(found) == pytest.approx(max(every))


def test_best_threshold_prefers_the_given_one_among_equals():
    labels, values = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert metrics.best_threshold(labels, values, 0.5) == 0.5
    assert metrics.best_threshold(labels, values, 0.95) == pytest.approx(0.5)
    assert metrics.best_threshold(labels, values, 0.3) == 0.3


@pytest.mark.parametrize(("preferred", "expected"), [(-2.9, -3.5), (-2.1, -1.5)])
def test_of_equal_thresholds_the_nearest_to_the_given_one_is_best(preferred, expected):
    """One of the two images of a class is wrong at -3.5 and at -1.5, one of each class between them."""
    labels, values = np.array([0, 1, 0, 1]), np.array([-4.0, -3.0, -2.0, -1.0])
    assert metrics.best_threshold(labels, values, preferred) == expected


def test_scores_in_reverse_order_get_a_threshold_beyond_either_end():
    labels, scores = np.repeat([1, 0], 5), np.arange(10.0, 20.0)
    below, above = metrics.best_threshold(labels, scores, 12.0), metrics.best_threshold(labels, scores, 17.2)
    assert 9.9 < below < 10 and above == 19


def test_a_score_at_the_threshold_is_real():
    found = metrics.at_threshold(np.array([0, 1]), np.array([0.5, 0.5]), 0.5)
    assert found == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0}


def test_curves_point_by_point():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    roc, precision_recall = metrics.roc_curve(labels, scores), metrics.precision_recall_curve(labels, scores)
    assert roc.false_positive_rate.tolist() == [0, 0, 0.5, 0.5, 1]
    assert roc.true_positive_rate.tolist() == [0, 0.5, 0.5, 1, 1]
    assert roc.threshold.tolist() == [np.inf, 0.8, 0.4, 0.35, 0.1]
    assert precision_recall.recall.tolist() == [0, 0.5, 0.5, 1, 1]
    assert precision_recall.precision.tolist() == pytest.approx([1, 1, 1 / 2, 2 / 3, 1 / 2])


def test_log_loss_by_its_definition():
    labels, p = np.array([0, 1, 1]), np.array([0.2, 0.7, 0.4])
    assert metrics.log_loss(labels, p) == pytest.approx(-np.mean(np.log([0.8, 0.7, 0.4])))


@pytest.mark.parametrize("rate", [0.01, 0.005, 0.2])
@pytest.mark.parametrize("grain", [None, 0.5])
def test_tpr_at_fpr_is_the_best_of_all_thresholds(rate, grain, monkeypatch):
    monkeypatch.setitem(metrics.FALSE_POSITIVE_RATES, "at rate", rate)
    labels, values = scores(3, grain=grain)
    best = 0.0
    for threshold in np.append(np.unique(values), -np.inf):
        predicted = values > threshold
        if predicted[labels == 0].mean() <= rate:
            best = max(best, predicted[labels == 1].mean())
    assert metrics.ranking(labels, values)["at rate"] == pytest.approx(best)


def test_calibration_error_bin_by_bin():
    labels = np.array([0, 1, 1, 1, 0, 1])
    p = np.array([0.01, 0.02, 0.70, 0.72, 0.9, 1.0])
    # fifteen bins: {0.01, 0.02}, {0.70, 0.72}, {0.9}, {1.0}
    expected = (2 * abs(0.015 - 0.5) + 2 * abs(0.71 - 1) + abs(0.9 - 0) + abs(1 - 1)) / 6
    assert metrics.expected_calibration_error(labels, p) == pytest.approx(expected)
    table = metrics.reliability(labels, p)
    assert table.images.tolist() == [2, 2, 1, 1] and table.share_fake.tolist() == [0.5, 1, 0, 1]
    assert (table.high - table.low).to_numpy() == pytest.approx(1 / 15)
    assert ((table.low <= table.p_fake) & (table.p_fake <= table.high)).all()


def test_brier_score_agrees_with_scikit_learn():
    labels, values = scores(4)
    p = 1 / (1 + np.exp(-values))
    assert metrics.probability(labels, p)["brier"] == pytest.approx(sk.brier_score_loss(labels, p))


def test_threshold_and_temperature_do_not_depend_on_test_images():
    labels, values = scores(2)
    argmax = (values > 0).astype(int)
    one = evaluate.evaluate_classifier(labels, values, labels, values, argmax)
    two = evaluate.evaluate_classifier(labels, values, labels, -values, argmax)
    assert one["threshold"] == two["threshold"] and one["temperature"] == two["temperature"]
    assert one["roc_auc"] == pytest.approx(1 - two["roc_auc"])
    p = 1 / (1 + np.exp(-values))
    one = evaluate.evaluate_autoencoder(labels, p, labels, p, paper_threshold=0.0035)
    two = evaluate.evaluate_autoencoder(labels, p, labels, 1 - p, paper_threshold=0.0035)
    assert one["threshold"] == two["threshold"] and one["paper"]["threshold"] == 0.0035
    assert one["mean_error"]["fake"] == pytest.approx(p[labels == 1].mean())


def test_every_metric_lies_in_its_interval():
    labels, values = scores(6)
    found = evaluate.evaluate_classifier(labels, values, labels, values, (values > 0).astype(int))
    assert set(evaluate.KEY_METRICS) | {"brier", "ece", "log_loss", "tpr_at_1_percent_fpr"} <= set(found["intervals"])
    for name, (low, high) in found["intervals"].items():
        assert low - 1e-9 <= found[name] <= high + 1e-9 or name == "ece", name  # resampling increases it


def test_argmax_over_one_logit_is_chance():
    """The likely cause of the paper's 50.00 % for binary cross entropy: at logit > 0 the same model is perfect."""
    labels = np.array([0, 1] * 50)
    outputs = np.where(labels == 1, 3.0, -3.0)[:, None]
    found = evaluate.evaluate_classifier(labels, outputs[:, 0], labels, outputs[:, 0], outputs.argmax(axis=1))
    assert (found["accuracy"], found["argmax"]["accuracy"]) == (1.0, 0.5)


def test_the_reversed_rule_is_right_where_fakes_reconstruct_better():
    labels, values = scores(7, apart=-2)
    errors = np.exp(values) / 100
    found = evaluate.evaluate_autoencoder(labels, errors, labels, errors, paper_threshold=0.0035)
    assert found["roc_auc"] < 0.2 and found["reversed"]["roc_auc"] == pytest.approx(1 - found["roc_auc"])
    predicted = errors < found["reversed"]["threshold"]
    assert found["reversed"]["accuracy"] == pytest.approx(np.mean(predicted == (labels == 1)))
    assert found["reversed"]["accuracy"] > 0.8
