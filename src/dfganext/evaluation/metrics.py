"""Figures of merit of a binary detector. Labels are 0 real and 1 fake; a higher score means "more likely fake"."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn import metrics as sk

Metrics = dict[str, float]


def at_threshold(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Metrics:
    """Accuracy, precision, recall and F1 of "fake" where score > threshold; 0 for the latter where nothing is called fake."""
    called = scores > threshold
    counts = sk.confusion_matrix(labels, called, labels=[0, 1])
    (true_real, false_fake), (false_real, true_fake) = counts.tolist()
    return {
        "accuracy": (true_fake + true_real) / len(labels),
        "precision": _ratio(true_fake, true_fake + false_fake),
        "recall": _ratio(true_fake, true_fake + false_real),
        "f1": _ratio(2 * true_fake, 2 * true_fake + false_fake + false_real),
    }


def ranking(labels: np.ndarray, scores: np.ndarray) -> Metrics:
    """What depends on the order of the scores alone: ROC-AUC, average precision, equal error rate."""
    return {
        "roc_auc": float(sk.roc_auc_score(labels, scores)),
        "average_precision": float(sk.average_precision_score(labels, scores)),
        "eer": equal_error_rate(labels, scores),
    }


def equal_error_rate(labels: np.ndarray, scores: np.ndarray) -> float:
    """The error rate, 0...1, where false positive and false negative rates meet, interpolated along the ROC curve."""
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    gap = fpr + tpr - 1  # rises from -1 to 1; zero where fpr = 1 - tpr
    after = int(np.searchsorted(gap, 0))  # the first point at or past the meeting
    if gap[after] == 0 or after == 0:
        return float(fpr[after])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1]))


def best_threshold(labels: np.ndarray, scores: np.ndarray, preferred: float) -> float:
    """The threshold with the highest balanced accuracy on these images; of several, the one nearest to `preferred`.

    Candidates are `preferred` itself, the midpoints between neighbouring scores, and one beyond either end.
    """
    ordered = np.unique(scores)
    ends = [ordered[0] - 1e-9 * max(1, abs(ordered[0])), ordered[-1]]
    candidates = np.concatenate([[preferred], (ordered[1:] + ordered[:-1]) / 2, ends])
    real, fake = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    true_real = np.searchsorted(real, candidates, side="right") / len(real)
    true_fake = 1 - np.searchsorted(fake, candidates, side="right") / len(fake)
    balanced = true_real + true_fake
    best = candidates[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - preferred))])


def log_loss(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """Mean negative log likelihood, in nats."""
    return float(sk.log_loss(labels, p_fake, labels=[0, 1]))


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Columns false_positive_rate, true_positive_rate, threshold."""
    fpr, tpr, threshold = sk.roc_curve(labels, scores)
    return pd.DataFrame({"false_positive_rate": fpr, "true_positive_rate": tpr, "threshold": threshold})


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Columns recall, precision, by rising recall."""
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    return pd.DataFrame({"recall": recall[::-1], "precision": precision[::-1]})


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
