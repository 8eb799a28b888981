"""Judge both models on the test split: thresholds are settled on validation images first, test images are read once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dfganext.data.arrays import Images
from dfganext.evaluation import metrics
from dfganext.labels import NAMES

HEADLINE = ("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer")


def headline(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The few figures by which experiments are compared, from what metrics/evaluate.json holds."""
    figures = {name: scores["convnext"][name] for name in HEADLINE}
    return figures | {f"autoencoder_{name}": scores["autoencoder"][name] for name in ("accuracy", "roc_auc")}


def judge_classifier(
    validation_labels: np.ndarray, validation_p: np.ndarray, test_labels: np.ndarray, test_p: np.ndarray
) -> dict[str, Any]:
    """Figures of the classifier.

    The threshold is the one nearest to 0.5 among those with the highest balanced accuracy on validation images.

    Args:
        validation_p, test_p: p_fake of each image, 0...1.

    Returns:
        threshold, accuracy, precision, recall and f1 at that threshold; roc_auc, average_precision, eer,
        log_loss; accuracy_at_half, at p_fake > 0.5; images, the number tested.
    """
    threshold = metrics.best_threshold(validation_labels, validation_p, preferred=0.5)
    return {
        "images": len(test_labels),
        "threshold": threshold,
        **metrics.at_threshold(test_labels, test_p, threshold),
        **metrics.ranking(test_labels, test_p),
        "log_loss": metrics.log_loss(test_labels, test_p),
        "accuracy_at_half": metrics.at_threshold(test_labels, test_p, 0.5)["accuracy"],
    }


def predictions(test: Images, p_fake: np.ndarray, threshold: float, errors: np.ndarray) -> pd.DataFrame:
    """A row a test image: path, label, predicted (fake where p_fake > threshold), p_fake, reconstruction_error."""
    names = np.array(NAMES)
    return pd.DataFrame(
        {
            "path": test.paths,
            "label": names[test.labels],
            "predicted": names[(p_fake > threshold).astype(int)],
            "p_fake": p_fake,
            "reconstruction_error": errors,
        }
    )


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
        The figures of `judge_classifier` at a threshold settled on validation images; under "paper" accuracy and recall
        at `paper_threshold`; and the mean error of each class.
    """
    threshold = metrics.best_threshold(validation_labels, validation_errors, preferred=paper_threshold)
    at_paper = metrics.at_threshold(test_labels, test_errors, paper_threshold)
    return {
        "images": len(test_labels),
        "threshold": threshold,
        **metrics.at_threshold(test_labels, test_errors, threshold),
        **metrics.ranking(test_labels, test_errors),
        "paper": {"threshold": paper_threshold, "accuracy": at_paper["accuracy"], "recall": at_paper["recall"]},
        "mean_error": {
            "real": float(test_errors[test_labels == 0].mean()),
            "fake": float(test_errors[test_labels == 1].mean()),
        },
    }
