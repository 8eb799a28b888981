"""The paper's Table I from recorded evaluations: which belong to a row, which are missing, how rows compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from dfganext.evaluation import intervals, metrics
from dfganext.evaluation.intervals import Interval
from dfganext.labels import FAKE, NAMES
from dfganext.settings import Settings, as_texts, flatten

NETWORK, AUTOENCODER = "convnext", "autoencoder"


@dataclass(frozen=True)
class Record:
    """One recorded evaluation.

    params: all settings of its run, as text.
    scores: the content of metrics/evaluate.json.
    predictions: one row per test image.
    parts: the models (NETWORK, AUTOENCODER) that were trained with this workspace's code, library versions and weights file.
    """

    run_id: str
    params: dict[str, str]
    scores: dict[str, Any]
    predictions: pd.DataFrame
    parts: frozenset[str]

    @property
    def seed(self) -> int:
        return int(self.params["seed"])


@dataclass(frozen=True)
class Row:
    """A row of Table I: one model and one decision rule.

    records: the latest evaluation of each seed, sorted by seed.
    correct: for each record, whether the prediction of each test image is correct, in order of path: bool, (n,).
    """

    key: str
    model: str
    variation: str
    records: tuple[Record, ...]
    correct: tuple[np.ndarray, ...]

    @property
    def seeds(self) -> list[int]:
        return [record.seed for record in self.records]

    @property
    def accuracies(self) -> np.ndarray:
        return np.array([correct.mean() for correct in self.correct])

    @property
    def mean(self) -> float:
        return float(self.accuracies.mean())

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (n - 1); None with a single seed."""
        return float(self.accuracies.std(ddof=1)) if len(self.correct) > 1 else None

    @property
    def extremes(self) -> tuple[float, float] | None:
        """Lowest and highest accuracy of any seed; None with a single seed."""
        return (float(self.accuracies.min()), float(self.accuracies.max())) if len(self.correct) > 1 else None

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of the mean accuracy, from the smallest effective number of test images of any seed."""
        groups = _ordered(self.records[0]).group.to_numpy()
        images = min(intervals.effective_images(correct, groups) for correct in self.correct)
        return intervals.wilson(self.mean * images, images)

    @property
    def roc_auc(self) -> float:
        """ROC AUC, mean over seeds."""
        return float(np.mean([record.scores[self.part]["roc_auc"] for record in self.records]))

    @property
    def part(self) -> str:
        return _part_of(self.key)

    @property
    def f1(self) -> float:
        """F1 of a network at logit > 0, with the first seed."""
        table = self.records[0].predictions
        return metrics.at_threshold(is_fake(table).astype(int), table.logit.to_numpy(), 0.0)["f1"]


def variants(settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings in which the four trained rows differ."""
    rows: dict[str, dict[str, Any]] = {f"{NETWORK}_{loss}": {"loss": loss} for loss in ("ce", "bce")}
    for name in ("first", "second"):
        row = getattr(settings.table1, name)
        rows[f"{AUTOENCODER}_{name}"] = {"autoencoder.size": row.size, "autoencoder.threshold": row.threshold}
    return rows


def matching(
    records: Sequence[Record], settings: Settings, part: str, changes: Mapping[str, Any]
) -> tuple[Record, ...]:
    """For each seed, the first record with the code, library versions, weights file and settings that affect a row.

    Args:
        part: the model of the row, NETWORK or AUTOENCODER.
        changes: settings in which the row differs from `settings`.
    """
    sections = ("resize.", f"{part}.", "loss") if part == NETWORK else ("resize.", f"{part}.")
    settings_of_row = as_texts({**flatten(settings), **changes})
    expected = {name: text for name, text in settings_of_row.items() if name.startswith(sections)}
    if settings.convnext.teacher.architecture is None:
        expected.pop(f"{NETWORK}.processes", None)  # affects only rounding
    found: dict[int, Record] = {}
    for record in records:
        if part in record.parts and all(record.params.get(name) == text for name, text in expected.items()):
            found.setdefault(record.seed, record)
    return tuple(found[seed] for seed in sorted(found))


def collect(records: Sequence[Record], settings: Settings) -> list[Row]:
    """All rows of Table I, including those without a record.

    Args:
        records: evaluations on the same split, newest first.
        settings: this workspace's; all that a row does not vary must be equal to these.
    """
    by_key = _records_by_row(records, settings)
    network = settings.convnext.architecture
    size = f"{settings.convnext.size} px"
    bce = by_key["convnext_bce"]
    binary = f"{size}, binary cross entropy"
    rows = [
        row_of("convnext_ce", network, f"{size}, cross entropy", by_key["convnext_ce"], by_logit),
        row_of("convnext_bce", network, f"{binary}, fake where logit > 0", bce, by_logit),
        row_of("convnext_bce_argmax", network, f"{binary}, argmax over its one logit", bce, _by_argmax),
    ]
    for name in ("first", "second"):
        row = getattr(settings.table1, name)
        text = f"{row.size} px, fake where the error is above {row.threshold:g}"
        key = f"{AUTOENCODER}_{name}"
        rows.append(row_of(key, AUTOENCODER, text, by_key[key], partial(_by_error, threshold=row.threshold)))
    return rows


def experiments(records: Sequence[Record], settings: Settings, seeds: int) -> list[dict[str, Any]]:
    """Settings of the experiments that are missing for every row to have `seeds` seeds, from settings.seed upwards.

    A seed has two experiments: cross entropy with the first autoencoder, and binary cross entropy with the second.
    """
    rows = variants(settings)
    pairs = [("convnext_ce", "autoencoder_first"), ("convnext_bce", "autoencoder_second")]
    done = {key: {record.seed for record in found} for key, found in _records_by_row(records, settings).items()}
    return [
        {"seed": seed, **rows[network], **rows[autoencoder]}
        for seed in range(settings.seed, settings.seed + seeds)
        for network, autoencoder in pairs
        if not (seed in done[network] and seed in done[autoencoder])
    ]


def _records_by_row(records: Sequence[Record], settings: Settings) -> dict[str, tuple[Record, ...]]:
    return {key: matching(records, settings, _part_of(key), changes) for key, changes in variants(settings).items()}


def _part_of(key: str) -> str:
    return AUTOENCODER if key.startswith(AUTOENCODER) else NETWORK


def compare(first: Row, second: Row) -> dict[str, Any] | None:
    """Accuracies of two rows on the same test images: seed, and the results of `intervals.accuracy_difference` and
    `intervals.mcnemar`, for the first seed that both have; None without one."""
    found = _common_seed(first, second)
    if found is None:
        return None
    one, other = found
    ours, theirs = first.correct[one], second.correct[other]
    gap = intervals.accuracy_difference(ours, theirs, _ordered(first.records[one]).group.to_numpy())
    return {"seed": first.seeds[one], **gap, **intervals.mcnemar(ours, theirs)}


def roc_auc_difference(first: Row, second: Row) -> dict[str, Any] | None:
    """`intervals.roc_auc_difference` of two autoencoders for the first seed that both have; None without one."""
    found = _common_seed(first, second)
    if found is None:
        return None
    one, other = _ordered(first.records[found[0]]), _ordered(second.records[found[1]])
    errors = one.reconstruction_error.to_numpy(), other.reconstruction_error.to_numpy()
    return intervals.roc_auc_difference(is_fake(one).astype(int), *errors, one.group.to_numpy())


def is_fake(table: pd.DataFrame) -> np.ndarray:
    """Whether the label of each row is fake: bool, (n,)."""
    return (table.label == NAMES[FAKE]).to_numpy()


def row_of(key: str, model: str, variation: str, records: tuple[Record, ...], rule: Any) -> Row:
    """A row. rule: from predictions (a table as in `Record`) to whether each is correct."""
    return Row(key, model, variation, records, tuple(rule(_ordered(record)) for record in records))


def _ordered(record: Record) -> pd.DataFrame:
    return record.predictions.sort_values("path", ignore_index=True)


def _common_seed(first: Row, second: Row) -> tuple[int, int] | None:
    """Positions of the first common seed in the two rows' records."""
    common = (seed for seed in first.seeds if seed in second.seeds)
    return next(((first.seeds.index(seed), second.seeds.index(seed)) for seed in common), None)


def by_logit(table: pd.DataFrame) -> np.ndarray:
    """Whether each prediction at logit > 0 is correct: bool, (n,)."""
    return (table.logit > 0).to_numpy() == is_fake(table)


def _by_argmax(table: pd.DataFrame) -> np.ndarray:
    return (table.argmax == table.label).to_numpy()


def _by_error(table: pd.DataFrame, threshold: float) -> np.ndarray:
    return (table.reconstruction_error > threshold).to_numpy() == is_fake(table)
