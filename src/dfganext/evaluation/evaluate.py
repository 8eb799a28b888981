"""Judge both models on the test split: what is chosen is chosen on validation images, test images are read once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dfganext.data.arrays import Images
from dfganext.evaluation import calibration, intervals, metrics
from dfganext.evaluation.intervals import Groups, Interval
from dfganext.labels import FAKE, NAMES

KEY_METRICS = ("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer")


def key_metrics(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The few figures by which experiments are compared, from what metrics/evaluate.json holds."""
    figures = {name: scores["convnext"][name] for name in KEY_METRICS}
    return figures | {f"autoencoder_{name}": scores["autoencoder"][name] for name in ("accuracy", "roc_auc")}


def judge_scores(labels: np.ndarray, scores: np.ndarray, threshold: float, groups: Groups = None) -> dict[str, Any]:
    """Figures of any detector whose higher scores mean "fake", with 95 % intervals.

    Args:
        groups: (n,), near-duplicate groups of the images, which count as independent of each other.

    Returns:
        images and threshold; accuracy, precision, recall and f1 at the threshold; what `metrics.ranking` gives; and under
        intervals [low, high] of each, by the methods of `intervals`.
    """
    rates = metrics.FALSE_POSITIVE_RATES
    return {
        "images": len(labels),
        "threshold": threshold,
        **metrics.at_threshold(labels, scores, threshold),
        **metrics.ranking(labels, scores),
        "intervals": {
            **_proportions(labels, scores, threshold, groups),
            "f1": intervals.f1(labels, scores > threshold, groups),
            "roc_auc": intervals.roc_auc(labels, scores, groups),
            **intervals.average_precision_and_eer(labels, scores, groups),
            **{name: intervals.tpr_at_fpr(labels, scores, rate, groups) for name, rate in rates.items()},
        },
    }


def judge_probabilities(
    validation_labels: np.ndarray,
    validation_p: np.ndarray,
    test_labels: np.ndarray,
    test_p: np.ndarray,
    test_groups: Groups = None,
) -> dict[str, Any]:
    """Figures of a detector that gives p_fake, 0...1.

    The threshold is the one nearest to 0.5 among those with the highest balanced accuracy on validation images.

    Returns:
        Those of `judge_scores` and `metrics.probability`; accuracy_at_half, at p_fake > 0.5.
    """
    threshold = metrics.best_threshold(validation_labels, validation_p, preferred=0.5)
    figures = judge_scores(test_labels, test_p, threshold, test_groups)
    figures["intervals"] |= intervals.probability(test_labels, test_p, test_groups)
    return {
        **figures,
        **metrics.probability(test_labels, test_p),
        "accuracy_at_half": metrics.at_threshold(test_labels, test_p, 0.5)["accuracy"],
    }


def evaluate_classifier(
    validation_labels: np.ndarray,
    validation_logits: np.ndarray,
    test_labels: np.ndarray,
    test_logits: np.ndarray,
    test_argmax: np.ndarray,
    test_groups: Groups = None,
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
    right = test_argmax == test_labels
    return {
        **judge_probabilities(validation_labels, validation_p, test_labels, test_p, test_groups),
        "temperature": temperature,
        "uncalibrated": metrics.probability(test_labels, calibration.apply(test_logits, 1.0)),
        "argmax": {
            "accuracy": float(right.mean()),
            "interval": intervals.proportion(right, test_groups),
        },
    }


def evaluate_autoencoder(
    validation_labels: np.ndarray,
    validation_errors: np.ndarray,
    test_labels: np.ndarray,
    test_errors: np.ndarray,
    paper_threshold: float,
    test_groups: Groups = None,
) -> dict[str, Any]:
    """Figures of the autoencoder as a detector: an image is fake where its reconstruction error is above a threshold.

    Args:
        validation_errors, test_errors: mean squared error of each image.
        paper_threshold: fixed beforehand, as the paper does.

    Returns:
        The figures of `judge_scores` at a threshold settled on validation images; under "paper" accuracy, its interval, and
        recall at `paper_threshold`; under "reversed" ROC AUC, threshold and accuracy of the opposite rule, fake where the
        error is *below*, because smooth fakes may reconstruct better; and the mean error of each class.
    """
    threshold = metrics.best_threshold(validation_labels, validation_errors, preferred=paper_threshold)
    at_paper = metrics.at_threshold(test_labels, test_errors, paper_threshold)
    below = metrics.best_threshold(validation_labels, -validation_errors, preferred=-paper_threshold)
    opposite = judge_scores(test_labels, -test_errors, below, test_groups)
    return {
        **judge_scores(test_labels, test_errors, threshold, test_groups),
        "paper": {
            "threshold": paper_threshold,
            "accuracy": at_paper["accuracy"],
            "interval": _proportions(test_labels, test_errors, paper_threshold, test_groups)["accuracy"],
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
    """A row a test image: path, label, group (of near duplicates), predicted (fake where p_fake > threshold), p_fake, logit,
    argmax, reconstruction_error."""
    names = np.array(NAMES)
    return pd.DataFrame(
        {
            "path": test.paths,
            "label": names[test.labels],
            "group": test.groups,
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


def _proportions(labels: np.ndarray, scores: np.ndarray, threshold: float, groups: Groups) -> dict[str, Interval]:
    """Wilson intervals of accuracy, precision and recall."""
    called, right = scores > threshold, (scores > threshold) == (labels == FAKE)
    chosen = {"accuracy": np.ones(len(labels), bool), "precision": called, "recall": labels == FAKE}
    return {
        name: intervals.proportion(right[rows], None if groups is None else groups[rows])
        for name, rows in chosen.items()
    }
