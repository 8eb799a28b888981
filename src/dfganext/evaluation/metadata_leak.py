"""Does the files' metadata predict the class? A classifier that reads metadata only, no pixels.

A detector learns whatever separates its classes. Where real and fake files differ in format, size or JPEG quality, it learns
that difference, and its metrics then describe files instead of faces (Grommelt et al. 2024, "Fake or JPEG?").
"""

from __future__ import annotations

from dataclasses import dataclass
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

_REENCODED = "`resize.reencode` is on, which weakens it; it is better to save both classes in the same way"
_SAVED = "Save both classes in the same way, or set `resize.reencode: true`"

# By group of features: what a detector could learn instead of faces, and what to do about it
_ADVICE = {
    "container": f"which format and colour mode each class was saved in. {_SAVED}.",
    "size": (
        "how much each class was scaled, because resampling leaves traces in the pixels. Use one size for both classes; "
        "`resize.reencode: true` encodes them in the same way but cannot undo the scaling."
    ),
    "quantisation": f"the JPEG quality that each class was saved at. {_SAVED}.",
    "bytes": f"how strongly each class was compressed. {_SAVED}, and check whether the sizes of reencoded files still differ.",
    "all": f"how the files were made. {_SAVED}.",
    "bytes_reencoded": (
        "how much detail or noise the pictures contain, which reencoding does not remove. Take both classes from similar "
        "originals, scaled in the same way."
    ),
}
_SUBJECT = {
    "container": "Format and colour mode",
    "size": "Width and height",
    "quantisation": "JPEG quantisation tables",
    "bytes": "Sizes of the files",
    "all": "All the files' metadata together",
    "bytes_reencoded": "Sizes of the reencoded files",
}

# By feature: predicate of images with this value, and of images above this cut point
_PREDICATE = {
    "format": ("are {} files", ""),
    "mode": ("have colour mode {}", ""),
    "quantisation": ("have JPEG quantisation tables of mean {}", ""),
    "width": ("are {:g} pixels wide", "are more than {:g} pixels wide"),
    "height": ("are {:g} pixels high", "are more than {:g} pixels high"),
    "aspect": ("have an aspect ratio of {:.4g}", "have an aspect ratio above {:.4g}"),
    "bytes": ("have {:.0f} bytes", "have more than {:.0f} bytes"),
    "bytes_per_pixel": ("have {:.4g} bytes a pixel", "have more than {:.4g} bytes a pixel"),
    "bytes_reencoded": ("have {:.0f} bytes after reencoding", "have more than {:.0f} bytes after reencoding"),
}


def measure(rows: pd.DataFrame, seed: int = 0, reencoded_bytes: pd.Series | None = None) -> dict[str, Any]:
    """Predict the class of held-out images from metadata.

    Gradient-boosted trees, cross-validated in up to five folds stratified by class; no near-duplicate group is split. The ROC
    AUC is the mean over folds, weighted by their pairs of images: each fold has its own model, and pooling scores of several
    models would push chance below 0.5. A slight bias of this kind remains in any cross-validation, so an area slightly below
    0.5 means chance. Results do not depend on the order of rows.

    Args:
        rows: one row per image: path, label ("real" or "fake"), width, height, format, mode, quantisation, bytes as in the
            manifest, and its near-duplicate group.
        reencoded_bytes: bytes of each image after both classes were encoded in the same way, with the index of `rows`; adds
            the group "bytes_reencoded", which is not part of "all".

    Returns:
        images: the number of rows.
        groups: {container, size, quantisation, bytes, all, bytes_reencoded if given: {features, roc_auc, interval, leak}}.
            interval is [low, high] (95 %, `intervals.roc_auc` of held-out scores); leak is low > 0.6. A group of constant
            features has 0.5 and [0.5, 0.5]. With too few images, roc_auc and interval are None and "note" says why.
        offenders: at most five, the largest difference first: {feature, value or above, real, fake, sentence}. For each column
            the value or cut point whose shares differ most between the classes, if they differ by more than 0.2 and by more
            than chance allows (Kolmogorov-Smirnov, 1 % over all columns).
        warnings: one sentence per leaking group, and one if a group could not be measured.

    Raises:
        ValueError: reencoded_bytes and rows describe different images.
    """
    if reencoded_bytes is not None:
        if not reencoded_bytes.index.sort_values().equals(rows.index.sort_values()):
            raise ValueError("reencoded_bytes and rows have different indices")
        rows = rows.assign(bytes_reencoded=reencoded_bytes)
    rows = rows.sort_values("path", ignore_index=True)
    labels = np.array([NAMES.index(label) for label in rows.label], np.int64)
    tables = _tables(rows)
    splits = _splits(labels, rows.group.to_numpy(), seed)

    groups: dict[str, dict[str, Any]] = {}
    scored: dict[str, _HeldOut] = {}
    for name, table in tables.items():
        groups[name] = {"features": list(table.columns), "roc_auc": None, "interval": None, "leak": False}
        if (table.nunique(dropna=False) <= 1).all():
            groups[name] |= {"roc_auc": 0.5, "interval": [0.5, 0.5]}
        elif splits:
            scored[name] = _held_out(table.to_numpy(float), labels, splits, seed)
        else:
            groups[name]["note"] = _too_few(labels)
    for name, (area, interval) in _areas(labels, rows.group.to_numpy(), splits, scored).items():
        groups[name] |= {"roc_auc": area, "interval": interval, "leak": interval[0] > LEAK}

    reencoded = reencoded_bytes is not None
    warnings = [_warning(name, group, reencoded) for name, group in groups.items() if group["leak"]]
    if any("note" in group for group in groups.values()):
        warnings.append(f"Could not measure whether metadata predicts the class: {_too_few(labels)}")
    return {"images": len(rows), "groups": groups, "offenders": _offenders(rows, labels), "warnings": warnings}


_Split = tuple[np.ndarray, np.ndarray]
"""Row numbers to train on, and those held out."""

_HeldOut = list[np.ndarray]
"""Scores of the held-out rows of each split."""


def _tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The features of each group as numbers.

    Column "tables" counts an image's quantisation tables; the mean of a missing table is -1, because a column that is NaN in all
    rows of a training fold cannot be binned.
    """
    container = pd.DataFrame({name: _codes(rows[name]) for name in ("format", "mode")})
    size = pd.DataFrame({"width": rows.width, "height": rows.height, "aspect": rows.width / rows.height})
    means = [[float(mean) for mean in text.split()] for text in rows.quantisation.fillna("")]
    quantisation = pd.DataFrame({"tables": [len(row) for row in means]})
    for i in range(max(map(len, means), default=0)):
        quantisation[f"table_{i + 1}"] = [row[i] if i < len(row) else -1.0 for row in means]
    saved = pd.DataFrame({"bytes": rows.bytes, "bytes_per_pixel": _bytes_per_pixel(rows)})
    tables = {"container": container, "size": size, "quantisation": quantisation, "bytes": saved}
    tables["all"] = pd.concat(tables.values(), axis=1)
    if "bytes_reencoded" in rows:
        tables["bytes_reencoded"] = rows[["bytes_reencoded"]]
    return tables


def _codes(values: pd.Series) -> np.ndarray:
    return pd.factorize(values.fillna(""), sort=True)[0]


def _bytes_per_pixel(rows: pd.DataFrame) -> pd.Series:
    return rows.bytes / (rows.width * rows.height)


def _splits(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[_Split]:
    """Folds whose training and held-out rows contain both classes; [] where a class is too small."""
    smallest = min(len(np.unique(groups[labels == label])) for label in (REAL, FAKE))
    if smallest < FOLD_SIZE:
        return []
    folds = StratifiedGroupKFold(int(np.clip(smallest // FOLD_SIZE, 2, FOLDS)), shuffle=True, random_state=seed)
    splits = folds.split(labels, labels, groups)
    return [split for split in splits if all(len(np.unique(labels[side])) == 2 for side in split)]


def _held_out(values: np.ndarray, labels: np.ndarray, splits: list[_Split], seed: int) -> _HeldOut:
    """Scores (higher: more likely fake) of each split's held-out rows, by a model trained on the other rows."""
    scores = []
    for train, test in splits:
        model = HistGradientBoostingClassifier(
            max_iter=50,
            max_depth=3,
            min_samples_leaf=min(20, max(2, len(train) // 10)),
            early_stopping=False,
            random_state=seed,
        )
        scores.append(model.fit(values[train], labels[train]).predict_proba(values[test])[:, FAKE])
    return scores


def _areas(
    labels: np.ndarray, groups: np.ndarray, splits: list[_Split], scored: dict[str, _HeldOut]
) -> dict[str, tuple[float, intervals.Interval]]:
    """ROC AUC of each group of features and its 95 % interval."""
    held_out = [test for _, test in splits]
    pairs = [float(np.sum(labels[test] == REAL) * np.sum(labels[test] == FAKE)) for test in held_out]
    found = {}
    for name, scores in scored.items():
        areas = [roc_auc_score(labels[test], part) for test, part in zip(held_out, scores, strict=True)]
        rows, fold = np.concatenate(held_out), np.repeat(np.arange(len(held_out)), [len(test) for test in held_out])
        interval = intervals.roc_auc(labels[rows], np.concatenate(scores), groups[rows], fold)
        found[name] = float(np.average(areas, weights=pairs)), interval
    return found


@dataclass(frozen=True)
class _Difference:
    """Shares of each class whose `feature` equals `value`, or with `cut` is above it."""

    feature: str
    value: Any
    cut: bool
    real: float
    fake: float

    @property
    def gap(self) -> float:
        return abs(self.real - self.fake)

    def __str__(self) -> str:
        if self.feature == "quantisation" and not self.value:
            what = "have no JPEG quantisation tables"
        else:
            shown = " and ".join(self.value.split()) if self.feature == "quantisation" else self.value
            what = _PREDICATE[self.feature][self.cut].format(shown)
        fakes, reals = f"{100 * self.fake:.3g} % of the fakes", f"{100 * self.real:.3g} % of the real images"
        first, second = (fakes, reals) if self.fake > self.real else (reals, fakes)
        return f"{first} but {second} {what}."


def _offenders(rows: pd.DataFrame, labels: np.ndarray) -> list[dict[str, Any]]:
    columns = {name: rows[name].fillna("") for name in ("format", "mode", "quantisation")}
    columns |= {name: rows[name] for name in ("width", "height", "bytes")}
    columns |= {"aspect": rows.width / rows.height, "bytes_per_pixel": _bytes_per_pixel(rows)}
    if "bytes_reencoded" in rows:
        columns["bytes_reencoded"] = rows.bytes_reencoded
    reals, fakes = np.sum(labels == REAL), np.sum(labels == FAKE)
    if not reals or not fakes:
        return []
    # Critical Kolmogorov-Smirnov distance at 1 % over all columns
    chance = np.sqrt(-np.log(0.01 / (2 * len(columns))) / 2 * (1 / reals + 1 / fakes))
    worst = [_worst(name, column.to_numpy(), labels) for name, column in columns.items()]
    named = sorted((one for one in worst if one.gap > max(GAP, chance)), key=lambda one: -one.gap)
    return [
        {
            "feature": one.feature,
            "above" if one.cut else "value": one.value,
            "real": one.real,
            "fake": one.fake,
            "sentence": str(one),
        }
        for one in named[:OFFENDERS]
    ]


def _worst(feature: str, column: np.ndarray, labels: np.ndarray) -> _Difference:
    """The value, or for numbers the cut point, with the largest gap; among equal gaps a value, and one that fakes have."""
    values, number = np.unique(column, return_inverse=True)
    counts = np.stack([np.bincount(number[labels == label], minlength=len(values)) for label in (REAL, FAKE)])
    real, fake = counts / counts.sum(axis=1, keepdims=True)
    best = max(range(len(values)), key=lambda i: (round(abs(real[i] - fake[i]), 12), fake[i]))
    single = _Difference(feature, values[best : best + 1].tolist()[0], False, float(real[best]), float(fake[best]))
    if len(values) < 2 or not np.issubdtype(values.dtype, np.number):
        return single
    real_above, fake_above = 1 - np.cumsum(counts, axis=1)[:, :-1] / counts.sum(axis=1, keepdims=True)
    at = int(np.argmax(np.abs(real_above - fake_above)))
    middle = float(values[at] + values[at + 1]) / 2
    cut = _Difference(feature, middle, True, float(real_above[at]), float(fake_above[at]))
    return cut if cut.gap > single.gap + 1e-12 else single


def _warning(name: str, group: dict[str, Any], reencoded: bool) -> str:
    low, high = group["interval"]
    advice = _ADVICE[name].replace(_SAVED, _REENCODED) if reencoded else _ADVICE[name]
    return (
        f"{_SUBJECT[name]} separate real from fake images without any pixel (ROC AUC {group['roc_auc']:.2f}, 95 % interval {low:.2f} to {high:.2f}; "
        f"chance is 0.5): a detector could learn {advice}"
    )


def _too_few(labels: np.ndarray) -> str:
    counts = np.bincount(labels, minlength=len(NAMES))
    return f"{counts[REAL]} real and {counts[FAKE]} fake images, or their near-duplicate groups, are too few for held-out images."
