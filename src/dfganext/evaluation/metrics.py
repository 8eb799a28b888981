"""Figures of merit of a binary detector. Labels are 0 real and 1 fake; a higher score means "more likely fake"."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn import metrics as sk

Metrics = dict[str, float]

ECE_BINS = 15
FALSE_POSITIVE_RATES = {"tpr_at_1_percent_fpr": 0.01, "tpr_at_half_percent_fpr": 0.005}


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
    """What depends on the order of the scores alone.

    ROC AUC, average precision, equal error rate, and the highest true positive rate at no more than 1 % and 0.5 % false
    positives.
    """
    return {
        "roc_auc": float(sk.roc_auc_score(labels, scores)),
        "average_precision": float(sk.average_precision_score(labels, scores)),
        "eer": equal_error_rate(labels, scores),
        **{name: tpr_at_fpr(labels, scores, rate) for name, rate in FALSE_POSITIVE_RATES.items()},
    }


def tpr_at_fpr(labels: np.ndarray, scores: np.ndarray, rate: float) -> float:
    """The highest true positive rate of any threshold whose false positive rate is at most `rate`."""
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    return float(tpr[fpr <= rate + 1e-12].max())


def probability(labels: np.ndarray, p_fake: np.ndarray) -> Metrics:
    """How good the probabilities are: log loss in nats, Brier score, expected calibration error."""
    return {
        "log_loss": log_loss(labels, p_fake),
        "brier": float(np.mean((p_fake - labels) ** 2)),
        "ece": expected_calibration_error(labels, p_fake),
    }


def expected_calibration_error(labels: np.ndarray, p_fake: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean distance, weighted by images, of p_fake from the share of fakes, over equal bins of p_fake (Naeini et al. 2015)."""
    table = reliability(labels, p_fake, bins)
    return float(np.sum(table.images * np.abs(table.p_fake - table.share_fake)) / len(labels))


def reliability(labels: np.ndarray, p_fake: np.ndarray, bins: int = ECE_BINS) -> pd.DataFrame:
    """A row a bin of p_fake that holds images: low, high, images, p_fake (mean), share_fake."""
    number = bin_of(p_fake, bins)
    rows = []
    for one in np.unique(number):
        inside = number == one
        rows.append((one / bins, (one + 1) / bins, int(inside.sum()), p_fake[inside].mean(), labels[inside].mean()))
    return pd.DataFrame(rows, columns=["low", "high", "images", "p_fake", "share_fake"])


def bin_of(p_fake: np.ndarray, bins: int) -> np.ndarray:
    """Number of the equal bin of 0...1 that each probability falls into; 1 belongs to the last."""
    return np.minimum((p_fake * bins).astype(int), bins - 1)


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


def losses(labels: np.ndarray, p_fake: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each image, in nats: (n,). Its mean is `log_loss`."""
    clipped = np.clip(p_fake, np.finfo(float).eps, 1 - np.finfo(float).eps)  # as scikit-learn does
    return -np.log(np.where(labels == 1, clipped, 1 - clipped))


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Columns false_positive_rate, true_positive_rate, threshold."""
    fpr, tpr, threshold = sk.roc_curve(labels, scores)
    return pd.DataFrame({"false_positive_rate": fpr, "true_positive_rate": tpr, "threshold": threshold})


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Columns recall, precision, by rising recall."""
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    return pd.DataFrame({"recall": recall[::-1], "precision": precision[::-1]})


def ranking_weighted(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What `ranking` gives, for many weightings of the same images at once.

    Args:
        weights: (b, n), zero or above; each row must leave weight on both classes.

    Returns:
        {name: (b,)}.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # images of one score stand or fall together
    fake = (labels[order] == 1).astype(float)
    ordered = weights[:, order]
    positives = np.cumsum(ordered * fake, axis=1)[:, ends]
    called = np.cumsum(ordered, axis=1)[:, ends]
    false = called - positives
    start = np.zeros((len(weights), 1))
    tpr = np.hstack([start, positives / positives[:, -1:]])
    fpr = np.hstack([start, false / false[:, -1:]])
    precision = np.divide(positives, called, out=np.zeros_like(called), where=called > 0)
    return {
        "roc_auc": np.sum(np.diff(fpr) * (tpr[:, 1:] + tpr[:, :-1]) / 2, axis=1),
        "average_precision": np.sum(np.diff(tpr) * precision, axis=1),
        "eer": _equal_error_rates(fpr, tpr),
        **{name: np.max(np.where(fpr <= rate + 1e-12, tpr, 0), axis=1) for name, rate in FALSE_POSITIVE_RATES.items()},
    }


def at_threshold_weighted(
    labels: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Accuracy and F1 of `at_threshold`, for many weightings (b, n) at once: {name: (b,)}."""
    called, fake = scores > threshold, labels == 1
    true_fake = weights @ (called & fake)
    wrong = weights @ (called != fake)
    whole = 2 * true_fake + wrong
    return {
        "accuracy": 1 - wrong / weights.sum(axis=1),
        "f1": np.divide(2 * true_fake, whole, out=np.zeros_like(whole), where=whole > 0),
    }


def probability_weighted(labels: np.ndarray, p_fake: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What `probability` gives, for many weightings (b, n) at once: {name: (b,)}."""
    total = weights.sum(axis=1)
    number = bin_of(p_fake, ECE_BINS)
    gaps = [np.abs(weights[:, number == one] @ (p_fake - labels)[number == one]) for one in np.unique(number)]
    return {
        "log_loss": weights @ losses(labels, p_fake) / total,
        "brier": weights @ (p_fake - labels) ** 2 / total,
        "ece": np.sum(gaps, axis=0) / total,
    }


def _equal_error_rates(fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
    """`equal_error_rate` of many curves (b, points)."""
    gap = fpr + tpr - 1
    after = np.argmax(gap >= 0, axis=1)  # the first point at or past the meeting; never the first of all
    row = np.arange(len(fpr))
    share = -gap[row, after - 1] / (gap[row, after] - gap[row, after - 1])
    return fpr[row, after - 1] + share * (fpr[row, after] - fpr[row, after - 1])


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
