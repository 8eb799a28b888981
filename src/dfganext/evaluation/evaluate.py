"""Judge both models on the test split: what is chosen is chosen on validation images, test images are read once."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from dfganext.data.arrays import Images
from dfganext.evaluation import calibration, intervals, metrics
from dfganext.evaluation.intervals import Interval
from dfganext.labels import FAKE, NAMES, REAL

HEADLINE = ("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer")


def headline(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The few figures by which experiments are compared, from what metrics/evaluate.json holds."""
    figures = {name: scores["convnext"][name] for name in HEADLINE}
    return figures | {f"autoencoder_{name}": scores["autoencoder"][name] for name in ("accuracy", "roc_auc")}


def judge_scores(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, Any]:
    """Figures of any detector whose higher scores mean "fake", with 95 % intervals.

    Returns:
        images and threshold; accuracy, precision, recall and f1 at the threshold; what `metrics.ranking` gives; and under
        intervals [low, high] of each: Wilson's for proportions, bootstrap for the rest.
    """
    at = metrics.at_threshold(labels, scores, threshold)
    bootstrapped = intervals.bootstrap(labels, partial(metrics.ranking_weighted, labels, scores))
    f1 = intervals.bootstrap(labels, partial(metrics.at_threshold_weighted, labels, scores, threshold))["f1"]
    return {
        "images": len(labels),
        "threshold": threshold,
        **at,
        **metrics.ranking(labels, scores),
        "intervals": {**_proportions(labels, scores, threshold), "f1": f1, **bootstrapped},
    }


def judge_probabilities(
    validation_labels: np.ndarray, validation_p: np.ndarray, test_labels: np.ndarray, test_p: np.ndarray
) -> dict[str, Any]:
    """Figures of a detector that gives p_fake, 0...1.

    The threshold is the one nearest to 0.5 among those with the highest balanced accuracy on validation images.

    Returns:
        Those of `judge_scores` and `metrics.probability`; accuracy_at_half, at p_fake > 0.5.
    """
    threshold = metrics.best_threshold(validation_labels, validation_p, preferred=0.5)
    figures = judge_scores(test_labels, test_p, threshold)
    figures["intervals"] |= intervals.bootstrap(test_labels, partial(metrics.probability_weighted, test_labels, test_p))
    return {
        **figures,
        **metrics.probability(test_labels, test_p),
        "accuracy_at_half": metrics.at_threshold(test_labels, test_p, 0.5)["accuracy"],
    }


def judge_classifier(
    validation_labels: np.ndarray,
    validation_logits: np.ndarray,
    test_labels: np.ndarray,
    test_logits: np.ndarray,
    test_argmax: np.ndarray,
) -> dict[str, Any]:
    """Figures of the classifier, its probabilities calibrated on validation images.

    Args:
        validation_logits, test_logits: (n,), of "fake".
        test_argmax: (n,), index of the largest output of the head. With one output that is always 0.

    Returns:
        Those of `judge_probabilities`; temperature; under uncalibrated those of `metrics.probability` at temperature 1;
        under argmax the accuracy of taking test_argmax for the class, with its interval.
    """
    temperature = calibration.fit_temperature(validation_labels, validation_logits)
    validation_p, test_p = (calibration.apply(logits, temperature) for logits in (validation_logits, test_logits))
    right = int(np.sum(test_argmax == test_labels))
    return {
        **judge_probabilities(validation_labels, validation_p, test_labels, test_p),
        "temperature": temperature,
        "uncalibrated": metrics.probability(test_labels, calibration.apply(test_logits, 1.0)),
        "argmax": {
            "accuracy": right / len(test_labels),
            "interval": intervals.wilson(right, len(test_labels)),
        },
    }


def judge_autoencoder(
    validation_labels: np.ndarray,
    validation_errors: np.ndarray,
    test_labels: np.ndarray,
    test_errors: np.ndarray,
    paper_threshold: float,
) -> dict[str, Any]:
    """Figures of the autoencoder as a detector: an image is fake where its reconstruction error is above a threshold.

    Args:
        validation_errors, test_errors: mean squared error of each image.
        paper_threshold: fixed beforehand, as the paper does.

    Returns:
        The figures of `judge_scores` at a threshold settled on validation images; under "paper" accuracy, its interval, and
        recall at `paper_threshold`; under "reversed" ROC-AUC, threshold and accuracy of the opposite rule, fake where the
        error is *below*, because smooth fakes may reconstruct better; and the mean error of each class.
    """
    threshold = metrics.best_threshold(validation_labels, validation_errors, preferred=paper_threshold)
    at_paper = metrics.at_threshold(test_labels, test_errors, paper_threshold)
    below = metrics.best_threshold(validation_labels, -validation_errors, preferred=-paper_threshold)
    opposite = judge_scores(test_labels, -test_errors, below)
    return {
        **judge_scores(test_labels, test_errors, threshold),
        "paper": {
            "threshold": paper_threshold,
            "accuracy": at_paper["accuracy"],
            "interval": _proportions(test_labels, test_errors, paper_threshold)["accuracy"],
            "recall": at_paper["recall"],
        },
        "reversed": {
            "threshold": -below,
            "accuracy": opposite["accuracy"],
            "roc_auc": opposite["roc_auc"],
            "intervals": {name: opposite["intervals"][name] for name in ("accuracy", "roc_auc")},
        },
        "mean_error": {name: float(test_errors[test_labels == code].mean()) for code, name in enumerate(NAMES)},
    }


def predictions(
    test: Images, logits: np.ndarray, p_fake: np.ndarray, threshold: float, argmax: np.ndarray, errors: np.ndarray
) -> pd.DataFrame:
    """A row a test image: path, label, predicted (fake where p_fake > threshold), p_fake, logit, argmax, reconstruction_error."""
    names = np.array(NAMES)
    return pd.DataFrame(
        {
            "path": test.paths,
            "label": names[test.labels],
            "predicted": names[(p_fake > threshold).astype(int)],
            "p_fake": p_fake,
            "logit": logits,
            "argmax": names[argmax],
            "reconstruction_error": errors,
        }
    )


def reliability(labels: np.ndarray, logits: np.ndarray, temperature: float) -> pd.DataFrame:
    """`metrics.reliability` before (temperature 1) and after scaling, told apart by the column temperature."""
    parts = [
        metrics.reliability(labels, calibration.apply(logits, one)).assign(temperature=one)
        for one in (1.0, temperature)
    ]
    return pd.concat(parts, ignore_index=True)


def _proportions(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, Interval]:
    """Wilson intervals of accuracy, precision and recall."""
    called, right = scores > threshold, (scores > threshold) == (labels == FAKE)
    return {
        "accuracy": intervals.wilson(int(right.sum()), len(labels)),
        "precision": intervals.wilson(int(right[called].sum()), int(called.sum())) if called.any() else [0.0, 1.0],
        "recall": intervals.wilson(int(right[labels == FAKE].sum()), int(np.sum(labels != REAL))),
    }
