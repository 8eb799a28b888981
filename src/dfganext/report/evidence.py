"""The data of the page: results of the stages, rows of other experiments, the paper's results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dfganext import paths
from dfganext.data import arrays, split
from dfganext.data.arrays import Images
from dfganext.evaluation import intervals
from dfganext.evaluation.intervals import Interval
from dfganext.explain import comparison
from dfganext.labels import NAMES
from dfganext.pipeline import require
from dfganext.report import architectures, table1, text
from dfganext.report.table1 import Record, Row, is_fake
from dfganext.settings import Settings


@dataclass(frozen=True)
class Evidence:
    """Results of the stages, under the stages' names.

    architectures: the rows of the comparison; the first is compared with the others.
    excluded: number of recorded evaluations of other code, library versions or weights, which no row of Table I contains.
    sample: whether all images are from the embedded sample of drawn portraits, which show nothing about faces.
    """

    settings: Settings
    rows: list[Row]
    architectures: list[Row]
    excluded: int
    split: pd.DataFrame
    sample: bool
    train: Images
    audit: dict[str, Any]
    evaluate: dict[str, Any]
    baseline: dict[str, Any]
    density: dict[str, Any]
    external: dict[str, Any]
    curves: pd.DataFrame
    robustness: pd.DataFrame
    predictions: pd.DataFrame
    baseline_predictions: pd.DataFrame
    reliability: pd.DataFrame
    densities: pd.DataFrame
    maps: pd.DataFrame
    comparison: pd.DataFrame
    faithfulness: pd.DataFrame
    faithfulness_curves: pd.DataFrame
    sanity: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the data on the page."""
        return text.data_name(self.settings, len(self.split), self.sample)

    @cached_property
    def paper(self) -> dict[str, Any]:
        return paper()

    @cached_property
    def density_and_spread(self) -> dict[str, dict[str, Any]]:
        """`within_class_correlation` of held-out log density and entropy of the map for an image's own class, by class."""
        heldout = self.densities[self.densities.protocol == "heldout"][["path", "log_density"]]
        both = heldout.merge(self.maps[self.maps.label == self.maps.target], on="path")
        classes = {label: both[both.label == label] for label in reversed(NAMES)}
        return {
            label: comparison.within_class_correlation(rows.log_density, rows.entropy, rows.group)
            for label, rows in classes.items()
        }

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)


def paper() -> dict[str, Any]:
    """The paper's results and claims, with their source."""
    return yaml.safe_load(resources.files("dfganext.report").joinpath("paper.yaml").read_text(encoding="utf-8"))


def load(settings: Settings, records: list[Record]) -> Evidence:
    """Read the results in the workspace. UserError names the first missing file.

    Args:
        records: evaluations on the same split, from `lineage.evaluations`.
    """
    table = split.read(paths.SPLIT)
    return Evidence(
        settings=settings,
        rows=table1.collect(records, settings),
        architectures=architectures.collect(records, settings),
        excluded=sum(not record.parts for record in records),
        split=table,
        sample=split.is_from(table, paths.SAMPLES),
        train=arrays.read(paths.images_of_size(settings.convnext.size), split.TRAIN),
        audit=read(paths.AUDIT_METRICS),
        evaluate=read(paths.EVALUATE_METRICS),
        baseline=read(paths.BASELINE_METRICS),
        density=read(paths.DENSITY_METRICS),
        external=read(paths.EXTERNAL_METRICS),
        curves=read(paths.CONVNEXT_CURVES),
        robustness=read(paths.ROBUSTNESS),
        predictions=read(paths.PREDICTIONS),
        baseline_predictions=read(paths.BASELINE / "predictions.csv"),
        reliability=read(paths.RELIABILITY),
        densities=read(paths.DENSITY / "scores.csv"),
        maps=read(paths.GRADCAM / "statistics.csv"),
        comparison=read(paths.GRADCAM / "comparison.csv"),
        faithfulness=read(paths.GRADCAM / "faithfulness.csv"),
        faithfulness_curves=read(paths.GRADCAM / "faithfulness_curves.csv"),
        sanity=read(paths.GRADCAM / "sanity.csv"),
    )


def read(path: Path) -> Any:
    """A result, JSON or CSV. UserError if it is missing."""
    require([path])
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return pd.read_csv(path, dtype={"path": str})


def by_half(table: pd.DataFrame) -> np.ndarray:
    """Whether each prediction at p_fake > 0.5 is correct: bool, (n,)."""
    return (table.p_fake > 0.5).to_numpy() == is_fake(table)


def interval_at_half(table: pd.DataFrame) -> Interval:
    """95 % interval of the accuracy at p_fake > 0.5."""
    return intervals.proportion(by_half(table), table.group.to_numpy())
