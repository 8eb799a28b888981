"""Evaluate both models on the test split. Thresholds and temperature are chosen on the validation split."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dfganext.data.arrays import Images
from dfganext.evaluation import calibration, intervals, metrics, selective
from dfganext.evaluation.decision import DecisionRule
from dfganext.evaluation.intervals import Groups
from dfganext.labels import FAKE, NAMES
from dfganext.settings import OperatingPoint

KEY_METRICS = ("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer")


def key_metrics(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The few metrics by which experiments are compared, from the content of metrics/evaluate.json."""
    found = {name: scores["convnext"][name] for name in KEY_METRICS}
    return found | {f"autoencoder_{name}": scores["autoencoder"][name] for name in ("accuracy", "roc_auc")}


def decision_metrics(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Of the classifier's decisions: shares of images that are unsure and novel, and the accuracy of the others, where known."""
    found = selective.columns(scores["convnext"]["decisions"])
    return {name: value for name, value in found.items() if value is not None}


def evaluate_scores(labels: np.ndarray, scores: np.ndarray, threshold: float, groups: Groups = None) -> dict[str, Any]:
    """Metrics of any detector whose higher scores mean "fake".

    Args:
        groups: (n,), the near-duplicate group of each image.

    Returns:
        images; threshold; the metrics of `metrics.at_threshold` and `metrics.ranking`; under "intervals" [low, high] of each.
    """
    predicted, fake = scores > threshold, labels == FAKE
    correct = predicted == fake
    return {
        "images": len(labels),
        "threshold": threshold,
        **metrics.at_threshold(labels, scores, threshold),
        **metrics.ranking(labels, scores),
        "intervals": {
            "accuracy": intervals.proportion(correct, groups),
            "precision": intervals.proportion(correct, groups, predicted),
            "recall": intervals.proportion(correct, groups, fake),
            "f1": intervals.f1(labels, predicted, groups),
            "roc_auc": intervals.roc_auc(labels, scores, groups),
            **intervals.average_precision_and_eer(labels, scores, groups),
            **{
                name: intervals.tpr_at_fpr(labels, scores, rate, groups)
                for name, rate in metrics.FALSE_POSITIVE_RATES.items()
            },
        },
    }


def evaluate_probabilities(
    validation_labels: np.ndarray,
    validation_p: np.ndarray,
    test_labels: np.ndarray,
    test_p: np.ndarray,
    test_groups: Groups = None,
) -> dict[str, Any]:
    """Metrics of a detector that gives p_fake, 0...1; the threshold is `metrics.best_threshold` on validation images.

    Returns:
        The metrics of `evaluate_scores` and of `metrics.probability`; accuracy_at_half, the accuracy at p_fake > 0.5.
    """
    threshold = metrics.best_threshold(validation_labels, validation_p, preferred=0.5)
    found = evaluate_scores(test_labels, test_p, threshold, test_groups)
    found["intervals"] |= intervals.probability(test_labels, test_p, test_groups)
    return {
        **found,
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
    """Metrics of the classifier, with probabilities calibrated on validation images.

    Args:
        validation_logits, test_logits: (n,), logits of "fake".
        test_argmax: (n,), index of the largest output of the head; always 0 for a head with one output.

    Returns:
        The metrics of `evaluate_probabilities`; temperature; "uncalibrated", `metrics.probability` at temperature 1; "argmax",
        the accuracy of predicting the class test_argmax and its interval.
    """
    temperature = calibration.fit_temperature(validation_labels, validation_logits)
    validation_p, test_p = (calibration.apply(logits, temperature) for logits in (validation_logits, test_logits))
    right = test_argmax == test_labels
    return {
        **evaluate_probabilities(validation_labels, validation_p, test_labels, test_p, test_groups),
        "temperature": temperature,
        "uncalibrated": metrics.probability(test_labels, calibration.apply(test_logits, 1.0)),
        "argmax": {"accuracy": float(right.mean()), "interval": intervals.proportion(right, test_groups)},
    }


def evaluate_autoencoder(
    validation_labels: np.ndarray,
    validation_errors: np.ndarray,
    test_labels: np.ndarray,
    test_errors: np.ndarray,
    paper_threshold: float,
    test_groups: Groups = None,
) -> dict[str, Any]:
    """Metrics of the autoencoder as a detector: fake where the reconstruction error is above a threshold.

    Args:
        validation_errors, test_errors: (n,), mean squared error of each image.

    Returns:
        The metrics of `evaluate_scores` at a threshold chosen on validation images; "paper", the results at paper_threshold;
        "reversed", those of the opposite rule, fake where the error is *below* a threshold, because smooth fakes may
        reconstruct better; mean_error of each class.
    """
    threshold = metrics.best_threshold(validation_labels, validation_errors, preferred=paper_threshold)
    at_paper = metrics.at_threshold(test_labels, test_errors, paper_threshold)
    below = metrics.best_threshold(validation_labels, -validation_errors, preferred=-paper_threshold)
    opposite = evaluate_scores(test_labels, -test_errors, below, test_groups)
    return {
        **evaluate_scores(test_labels, test_errors, threshold, test_groups),
        "paper": {
            "threshold": paper_threshold,
            "accuracy": at_paper["accuracy"],
            "interval": intervals.proportion((test_errors > paper_threshold) == (test_labels == FAKE), test_groups),
            "recall": at_paper["recall"],
        },
        "reversed": {
            "threshold": -below,
            "accuracy": opposite["accuracy"],
            "roc_auc": opposite["roc_auc"],
            "intervals": {name: opposite["intervals"][name] for name in ("accuracy", "roc_auc")},
        },
        "mean_error": {name: float(test_errors[test_labels == label].mean()) for label, name in enumerate(NAMES)},
    }


class Results(NamedTuple):
    """The classifier's results for n images, each (n,): logit of "fake", index of the largest output, and novelty."""

    images: Images
    logits: np.ndarray
    argmax: np.ndarray
    novelty: np.ndarray


def evaluate_decisions(
    validation: Results, test: Results, threshold: float, temperature: float, settings: OperatingPoint
) -> tuple[DecisionRule, np.ndarray, dict[str, Any]]:
    """Choose the rule for decisions on validation images, and apply it to test images.

    Returns:
        The rule; the decision for each test image, text (n,); and metrics: the rule's values, the details of `selective.choose` as
        validation, and those of `selective.measure` on the test images.
    """
    validation_p, test_p = (calibration.apply(one.logits, temperature) for one in (validation, test))
    rule, found = selective.make_rule(validation.images, validation_p, validation.novelty, threshold, settings)
    decisions, novel = selective.decide(rule, test_p, test.novelty)
    measured = selective.measure(test.images.labels, decisions, novel, test.images.groups)
    return rule, decisions, {**asdict(rule), "validation": found, **measured}


def predictions(
    test: Results, p_fake: np.ndarray, threshold: float, decisions: np.ndarray, errors: np.ndarray
) -> pd.DataFrame:
    """One row per test image: path, label, group (of near duplicates), predicted (fake where p_fake > threshold), p_fake,
    logit, argmax, novelty, decision, reconstruction_error."""
    names = np.array(NAMES)
    return pd.DataFrame(
        {
            "path": test.images.paths,
            "label": names[test.images.labels],
            "group": test.images.groups,
            "predicted": names[(p_fake > threshold).astype(int)],
            "p_fake": p_fake,
            "logit": test.logits,
            "argmax": names[test.argmax],
            "novelty": test.novelty,
            "decision": decisions,
            "reconstruction_error": errors,
        }
    )


def reliability(labels: np.ndarray, logits: np.ndarray, temperature: float) -> pd.DataFrame:
    """`metrics.reliability` before scaling (column temperature 1) and after it (column temperature as given)."""
    parts = [
        metrics.reliability(labels, calibration.apply(logits, one)).assign(temperature=one)
        for one in (1.0, temperature)
    ]
    return pd.concat(parts, ignore_index=True)
