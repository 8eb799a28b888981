"""Metrics of a detector on another labelled set, at the decision threshold chosen on its own validation images."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from dfganext.data import split
from dfganext.evaluation import intervals, metrics, selective
from dfganext.evaluation.intervals import Interval
from dfganext.labels import FAKE, NAMES, REAL, index_of

TITLES = {
    "accuracy": "accuracy",
    "true_positive_rate": "fakes found",
    "false_positive_rate": "real images called fake",
    "roc_auc": "ROC AUC",
    "ece": "calibration error (ECE)",
}
"""The key metrics of a set."""

DECISION_TITLES = {
    "unsure": "unsure",
    "novel": "unlike the training images",
    "accuracy": "accuracy where not unsure",
}
"""Of metrics of the decisions."""


class Own(NamedTuple):
    """The test images of the detector's own data, with which a set is compared that lacks the other class: labels (0 or 1), p_fake
    and near-duplicate groups, (n,) each."""

    labels: np.ndarray
    p_fake: np.ndarray
    groups: np.ndarray


def evaluate_set(
    images: pd.DataFrame, threshold: float, trained_on: pd.DataFrame | None, bits: int, own: Own | None = None
) -> dict[str, Any]:
    """Metrics of a set without its near duplicates of training images.

    Args:
        images: one row per image, as from `labelled.predict`.
        trained_on: one row per training image, columns phash and phash_mirrored; None if they are unknown.
        bits: as the setting subsample.near_duplicate_bits.

    Returns:
        The metrics of `evaluate`; decisions, those of `selective.measure`; left_out, the number of near duplicates of training
        images, None if those are unknown; and files, the result of `describe`.
    """
    others = images.iloc[:0] if trained_on is None else trained_on
    group, trained = split.groups_beside(images, others, bits)
    kept = images[~trained]
    labels = np.array([index_of(label) for label in kept.label], np.int64)
    found = evaluate(labels, kept.p_fake.to_numpy(), threshold, group[~trained], own)
    found["decisions"] = selective.measure(labels, kept.decision.to_numpy(), kept.novel.to_numpy(bool), group[~trained])
    left_out = None if trained_on is None else int(trained.sum())
    return {**found, "left_out": left_out, "files": describe(kept)}


def evaluate(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float, groups: intervals.Groups = None, own: Own | None = None
) -> dict[str, Any]:
    """Metrics of a set that may lack a class.

    Args:
        labels, p_fake: (n,); without images, every metric is None.
        threshold: an image is predicted fake where p_fake > threshold.
        groups: (n,), the near-duplicate group of each image.
        own: for the ROC AUC of a set with one class.

    Returns:
        Numbers of images, real and fake; accuracy; true_positive_rate, the share of fake images predicted fake, and
        false_positive_rate, the share of real images predicted fake; ece; roc_auc, and roc_auc_against, which names the images
        of the other class: "the set", or the class of the test split where the set lacks it. None where a class is missing.
        Under "intervals" [low, high], 95 %, of the rates and the ROC AUC.
    """
    predicted, fake = p_fake > threshold, labels == FAKE
    found: dict[str, Any] = {"images": len(labels), "real": int((~fake).sum()), "fake": int(fake.sum())}
    spans: dict[str, Interval | None] = {}
    rates = {
        "accuracy": (np.ones(len(labels), bool), predicted == fake),
        "true_positive_rate": (fake, predicted),
        "false_positive_rate": (~fake, predicted),
    }
    for name, (rows, hits) in rates.items():
        some = bool(rows.any())
        found[name] = float(hits[rows].mean()) if some else None
        spans[name] = intervals.proportion(hits[rows], None if groups is None else groups[rows]) if some else None
    found["ece"] = float(metrics.expected_calibration_error(labels, p_fake)) if len(labels) else None
    found["roc_auc"], found["roc_auc_against"], spans["roc_auc"] = _roc_auc(labels, p_fake, groups, own)
    return found | {"intervals": spans}


def describe(images: pd.DataFrame) -> dict[str, dict[Any, int]]:
    """Numbers of images by format, by size and by mean of the first JPEG quantisation table: the most frequent first.

    Where they differ from those of the training images, a detector's errors may come from the files and not from the faces.
    """
    first = images.quantisation.map(lambda means: (means.split() or ["none"])[0])
    columns = {
        "format": images.format,
        "size": images.width.astype(str) + "x" + images.height.astype(str),
        "quantisation": first,
    }
    return {name: column.value_counts().head(5).to_dict() for name, column in columns.items()}


def _roc_auc(
    labels: np.ndarray, p_fake: np.ndarray, groups: intervals.Groups, own: Own | None
) -> tuple[float | None, str | None, Interval | None]:
    present = {int(label) for label in np.unique(labels)}
    if len(present) == 2:
        area = float(roc_auc_score(labels, p_fake))
        return area, "the set", intervals.roc_auc(labels, p_fake, groups)
    if own is None or not present:
        return None, None, None
    other = REAL if present == {FAKE} else FAKE
    chosen = own.labels == other
    if groups is not None:
        groups = np.concatenate([groups, own.groups[chosen] + groups.max() + 1])
    labels = np.concatenate([labels, own.labels[chosen]])
    p_fake = np.concatenate([p_fake, own.p_fake[chosen]])
    area = float(roc_auc_score(labels, p_fake))
    return area, f"{NAMES[other]} test images", intervals.roc_auc(labels, p_fake, groups)


def flat_metrics(name: str, metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of a set that are known, named for MLflow: external_<set>_<metric>.

    The name of the set is cut, and has _ for what MLflow does not allow: sets may come to share one.
    """
    name = re.sub(r"[^\w.\- ]", "_", name)[:200]
    found = {key: metrics[key] for key in TITLES} | {key: metrics["decisions"][key] for key in ("unsure", "novel")}
    return {f"external_{name}_{key}": value for key, value in found.items() if value is not None}


def plot_table(sets: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row per set: its key metrics with the ends of their intervals, for `dvc plots`."""
    rows = []
    for name, found in sets.items():
        row: dict[str, Any] = {"set": name, "images": found["images"]}
        for key in TITLES:
            row[key] = found[key]
            if key in found["intervals"]:
                row[f"{key}_low"], row[f"{key}_high"] = found["intervals"][key] or (None, None)
        rows.append(row | selective.columns(found["decisions"]))
    return pd.DataFrame(rows)


def summary(name: str, found: dict[str, Any]) -> str:
    """The metrics of a set as one line."""
    parts = [f"{name}: {found['real']} real and {found['fake']} fake images"]
    for key in ("accuracy", "true_positive_rate", "false_positive_rate"):
        if found[key] is not None:
            low, high = found["intervals"][key]
            parts.append(f"{TITLES[key]} {100 * found[key]:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)")
    if found["roc_auc"] is not None:
        parts.append(f"ROC AUC {found['roc_auc']:.3f} (against {found['roc_auc_against']})")
    if found["decisions"]["unsure"] is not None:
        parts.append(f"unsure about {100 * found['decisions']['unsure']:.1f} %")
    if found["left_out"]:
        parts.append(left_out(found["left_out"]))
    return ", ".join(parts)


def left_out(number: int) -> str:
    """3 -> "3 images left out: training images or near duplicates of them"."""
    return f"{number} image{'s' if number > 1 else ''} left out: training images or near duplicates of them"
