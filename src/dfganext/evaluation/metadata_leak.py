"""Does the files' metadata predict the class? A classifier that reads metadata only, no pixels.

A detector learns whatever separates its classes. Where real and fake files differ in format, size or JPEG quality, it learns
that difference, and its metrics then describe files instead of faces (Grommelt et al. 2024, "Fake or JPEG?").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from dfganext.evaluation import intervals
from dfganext.labels import FAKE, NAMES, REAL

LEAK = 0.6
"""A group of features leaks if the lower end of the interval of its ROC AUC is above this."""
GAP = 0.2
"""Smallest difference between the shares of real and fake images that is reported as an offender."""
OFFENDERS = 5
"""Offenders reported at most."""
FOLDS = 5
FOLD_SIZE = 10
"""Near-duplicate groups of each class per fold: smaller data sets get fewer folds, and none below this number."""

_SAVE = "Save both classes in the same way; `resize.reencode: true` weakens the difference."

_GROUPS = {
    "container": ("Format and colour mode", f"which format and colour mode each class was saved in. {_SAVE}"),
    "size": (
        "Width and height",
        "how much each class was scaled, because resampling leaves traces in the pixels. Use one size for both classes: "
        "`resize.reencode` cannot undo the scaling.",
    ),
    "quantisation": ("JPEG quantisation tables", f"the JPEG quality that each class was saved at. {_SAVE}"),
    "bytes": ("Sizes of the files", f"how strongly each class was compressed. {_SAVE}"),
    "all": ("All the files' metadata together", f"how the files were made. {_SAVE}"),
    "bytes_reencoded": (
        "Sizes of the reencoded files",
        "how much detail or noise the pictures contain, which reencoding does not remove. Take both classes from similar "
        "originals, scaled in the same way.",
    ),
}
"""Subject of the warning about each group of features, and what a detector could learn instead of faces."""

_PREDICATES = {
    "format": "are {} files",
    "mode": "have colour mode {}",
    "quantisation": "have JPEG quantisation tables of mean {}",
    "width": "are {} pixels wide",
    "height": "are {} pixels high",
    "bytes": "have {} bytes",
    "aspect": "have an aspect ratio of {}",
    "bytes_per_pixel": "have {} bytes a pixel",
    "bytes_reencoded": "have {} bytes after reencoding",
}
"""What is said of the images that have a value, by feature."""


def measure(rows: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Predict the class of held-out images from metadata.

    Gradient-boosted trees, cross-validated in up to five folds stratified by class; no near-duplicate group is split. The ROC
    AUC is the mean over folds, weighted by their pairs of images, because pooled scores of several models would push chance below
    0.5. Results do not depend on the order of rows.

    Args:
        rows: one row per image: path, label ("real" or "fake"), width, height, format, mode, quantisation, bytes as in the
            manifest, and its near-duplicate group; optionally bytes_reencoded, the bytes of each image after both classes were
            encoded in the same way: a group of features that is not part of "all".

    Returns:
        images: the number of rows.
        groups: {container, size, quantisation, bytes, all, bytes_reencoded if given: {features, roc_auc, interval, leak}}.
            interval is [low, high] (95 %); leak is low > 0.6. A group of constant features has 0.5 and [0.5, 0.5]. With too few
            images, roc_auc and interval are None and "note" says why.
        offenders: at most five: for each feature the value or cut point whose shares differ most between the classes, if by more
            than 0.2 and than chance allows (Kolmogorov-Smirnov, 1 %): {feature, value or above, real, fake, sentence}.
        warnings: one sentence per leaking group, and one if a group could not be measured.
    """
    rows = rows.sort_values("path", ignore_index=True)
    rows = rows.assign(aspect=rows.width / rows.height, bytes_per_pixel=rows.bytes / (rows.width * rows.height))
    rows[["format", "mode", "quantisation"]] = rows[["format", "mode", "quantisation"]].fillna("")
    labels = np.array([NAMES.index(label) for label in rows.label], np.int64)
    splits = _splits(labels, rows.group.to_numpy(), seed)

    groups: dict[str, dict[str, Any]] = {}
    warnings = []
    for name, table in _tables(rows).items():
        found = groups[name] = {"features": list(table.columns), "roc_auc": None, "interval": None, "leak": False}
        if (table.nunique(dropna=False) <= 1).all():
            found |= {"roc_auc": 0.5, "interval": [0.5, 0.5]}
        elif splits:
            area, interval = _separation(table.to_numpy(float), labels, rows.group.to_numpy(), splits, seed)
            found |= {"roc_auc": area, "interval": interval, "leak": interval[0] > LEAK}
        else:
            found["note"] = _too_few(labels)
        if found["leak"]:
            warnings.append(_warning(name, found))
    if any("note" in group for group in groups.values()):
        warnings.append(f"Could not measure whether metadata predicts the class: {_too_few(labels)}")
    return {"images": len(rows), "groups": groups, "offenders": _offenders(rows, labels), "warnings": warnings}


def _tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The features of each group as numbers; -1 for the mean of a missing quantisation table, because a column that is NaN in all
    rows of a training fold cannot be binned."""
    means = [[float(mean) for mean in text.split()] for text in rows.quantisation]
    quantisation = pd.DataFrame({"tables": [len(row) for row in means]})
    for i in range(max(map(len, means), default=0)):
        quantisation[f"table_{i + 1}"] = [row[i] if i < len(row) else -1.0 for row in means]
    tables = {
        "container": pd.DataFrame({name: pd.factorize(rows[name], sort=True)[0] for name in ("format", "mode")}),
        "size": rows[["width", "height", "aspect"]],
        "quantisation": quantisation,
        "bytes": rows[["bytes", "bytes_per_pixel"]],
    }
    tables["all"] = pd.concat(tables.values(), axis=1)
    if "bytes_reencoded" in rows:
        tables["bytes_reencoded"] = rows[["bytes_reencoded"]]
    return tables


def _splits(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers to train on and held out, for folds in which both contain both classes; [] where a class is too small."""
    smallest = min(len(np.unique(groups[labels == label])) for label in (REAL, FAKE))
    if smallest < FOLD_SIZE:
        return []
    folds = StratifiedGroupKFold(int(np.clip(smallest // FOLD_SIZE, 2, FOLDS)), shuffle=True, random_state=seed)
    splits = folds.split(labels, labels, groups)
    return [split for split in splits if all(len(np.unique(labels[side])) == 2 for side in split)]


def _separation(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[float, intervals.Interval]:
    """ROC AUC of held-out scores, each by a model trained on the other rows of its split, and its 95 % interval."""
    scores, areas = [], []
    for train, test in splits:
        model = HistGradientBoostingClassifier(
            max_iter=50,
            max_depth=3,
            min_samples_leaf=min(20, max(2, len(train) // 10)),
            early_stopping=False,
            random_state=seed,
        )
        scores.append(model.fit(values[train], labels[train]).predict_proba(values[test])[:, FAKE])
        areas.append(roc_auc_score(labels[test], scores[-1]))
    held_out = [test for _, test in splits]
    pairs = [float(np.sum(labels[test] == REAL) * np.sum(labels[test] == FAKE)) for test in held_out]
    rows, fold = np.concatenate(held_out), np.repeat(np.arange(len(held_out)), [len(test) for test in held_out])
    interval = intervals.roc_auc(labels[rows], np.concatenate(scores), groups[rows], fold)
    return float(np.average(areas, weights=pairs)), interval


def _offenders(rows: pd.DataFrame, labels: np.ndarray) -> list[dict[str, Any]]:
    """See `measure`."""
    features = [name for name in _PREDICATES if name in rows]
    reals, fakes = np.sum(labels == REAL), np.sum(labels == FAKE)
    if not reals or not fakes:
        return []
    # Critical Kolmogorov-Smirnov distance at 1 % over all columns
    chance = np.sqrt(-np.log(0.01 / (2 * len(features))) / 2 * (1 / reals + 1 / fakes))
    worst = [_worst(name, rows[name].to_numpy(), labels) for name in features]
    named = sorted((one for one in worst if _gap(one) > max(GAP, chance)), key=_gap, reverse=True)
    return [one | {"sentence": _sentence(one)} for one in named[:OFFENDERS]]


def _gap(offender: dict[str, Any]) -> float:
    return abs(offender["real"] - offender["fake"])


def _worst(feature: str, column: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The value, or for numbers the cut point, with the largest gap; among equal gaps a value, and one that fakes have."""
    values, number = np.unique(column, return_inverse=True)
    counts = np.stack([np.bincount(number[labels == label], minlength=len(values)) for label in (REAL, FAKE)])
    totals = counts.sum(axis=1, keepdims=True)
    real, fake = counts / totals
    best = max(range(len(values)), key=lambda i: (round(abs(real[i] - fake[i]), 12), fake[i]))
    single = {"feature": feature, "value": values.tolist()[best], "real": float(real[best]), "fake": float(fake[best])}
    if len(values) < 2 or not np.issubdtype(values.dtype, np.number):
        return single
    real_above, fake_above = 1 - np.cumsum(counts, axis=1)[:, :-1] / totals
    at = int(np.argmax(np.abs(real_above - fake_above)))
    middle = float(values[at] + values[at + 1]) / 2
    cut = {"feature": feature, "above": middle, "real": float(real_above[at]), "fake": float(fake_above[at])}
    return cut if _gap(cut) > _gap(single) + 1e-12 else single


def _sentence(offender: dict[str, Any]) -> str:
    feature, value = offender["feature"], offender["above"] if "above" in offender else offender["value"]
    if value == "" and feature == "quantisation":
        what = "have no JPEG quantisation tables"
    elif isinstance(value, str):
        what = _PREDICATES[feature].format(" and ".join(value.split()))
    else:
        number = f"{value:.0f}" if value >= 100 else f"{value:.4g}"
        what = _PREDICATES[feature].format(f"more than {number}" if "above" in offender else number)
    real, fake = offender["real"], offender["fake"]
    fakes, reals = f"{100 * fake:.3g} % of the fakes", f"{100 * real:.3g} % of the real images"
    return f"{fakes} but {reals} {what}." if fake > real else f"{reals} but {fakes} {what}."


def _warning(name: str, group: dict[str, Any]) -> str:
    (low, high), (subject, learnt) = group["interval"], _GROUPS[name]
    return (
        f"{subject} separate real from fake images without any pixel (ROC AUC {group['roc_auc']:.2f}, 95 % interval {low:.2f} to {high:.2f}; "
        f"chance is 0.5): a detector could learn {learnt}"
    )


def _too_few(labels: np.ndarray) -> str:
    counts = np.bincount(labels, minlength=len(NAMES))
    return f"{counts[REAL]} real and {counts[FAKE]} fake images, or their near-duplicate groups, are too few for held-out images."
