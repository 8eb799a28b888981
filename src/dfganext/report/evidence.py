"""Everything the page is made from, read once: results of the stages, rows of other experiments, the paper's figures."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dfganext import paths
from dfganext.data import arrays
from dfganext.data import split as sampling
from dfganext.data.arrays import Images
from dfganext.errors import UserError
from dfganext.explain import comparison
from dfganext.labels import NAMES
from dfganext.report import table1
from dfganext.report.table1 import Record, Row
from dfganext.settings import Settings


@dataclass(frozen=True)
class Evidence:
    """Results as the stages left them, under the stages' names.

    made_otherwise counts evaluations on record that other code, library versions or weights made: no row holds them.
    sample tells whether all images are of the embedded sample: drawn portraits, from which nothing follows about faces.
    """

    settings: Settings
    rows: list[Row]
    made_otherwise: int
    split: pd.DataFrame
    sample: bool
    train: Images
    audit: dict[str, Any]
    evaluate: dict[str, Any]
    baseline: dict[str, Any]
    density: dict[str, Any]
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
        """What the page calls the images."""
        if self.settings.report.data is not None:
            return self.settings.report.data
        if self.sample:
            return "the embedded sample of drawn portraits"
        return f"{len(self.split):,} images from {self.settings.download.source}"

    @property
    def model(self) -> str:
        """Architecture and where its weights came from."""
        chosen = self.settings.convnext
        start = {"random": "random weights", "imagenet": "ImageNet weights"}.get(
            chosen.weights, Path(chosen.weights).name
        )
        return f"{chosen.architecture}, {start}, {chosen.size} px, loss {self.settings.loss}"

    @cached_property
    def paper(self) -> dict[str, Any]:
        return paper()

    @cached_property
    def density_and_spread(self) -> dict[str, dict[str, Any]]:
        """By class, fake first: how held-out log density goes with the entropy of the map for that class.

        Each as `comparison.within_class_correlation` gives it.
        """
        heldout = self.densities[self.densities.protocol == "heldout"][["path", "log_density"]]
        found = {}
        for label in reversed(NAMES):
            own = self.maps[(self.maps.label == label) & (self.maps.target == label)]
            both = heldout.merge(own, on="path")
            found[label] = comparison.within_class_correlation(both.log_density, both.entropy, both.group)
        return found

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)


def paper() -> dict[str, Any]:
    """The paper's figures and claims, with their source."""
    return yaml.safe_load(resources.files("dfganext.report").joinpath("paper.yaml").read_text(encoding="utf-8"))


def load(chosen: Settings, records: list[Record]) -> Evidence:
    """Read the results in the workspace. UserError names the first that is missing.

    Args:
        records: evaluations on the same split, from `lineage.evaluations`.
    """
    split = sampling.read(paths.SPLIT)
    return Evidence(
        settings=chosen,
        rows=table1.collect(records, chosen),
        made_otherwise=sum(not record.parts for record in records),
        split=split,
        sample=set(split.sha256) <= _hashes(paths.SAMPLES),
        train=arrays.read(paths.images_of_size(chosen.convnext.size), sampling.TRAIN),
        audit=_json(paths.AUDIT_METRICS),
        evaluate=_json(paths.EVALUATE_METRICS),
        baseline=_json(paths.BASELINE_METRICS),
        density=_json(paths.DENSITY_METRICS),
        curves=_table(paths.CONVNEXT_CURVES),
        robustness=_table(paths.ROBUSTNESS),
        predictions=_table(paths.PREDICTIONS),
        baseline_predictions=_table(paths.BASELINE / "predictions.csv"),
        reliability=_table(paths.RELIABILITY),
        densities=_table(paths.DENSITY / "scores.csv"),
        maps=_table(paths.GRADCAM / "statistics.csv"),
        comparison=_table(paths.GRADCAM / "comparison.csv"),
        faithfulness=_table(paths.GRADCAM / "faithfulness.csv"),
        faithfulness_curves=_table(paths.GRADCAM / "faithfulness_curves.csv"),
        sanity=_table(paths.GRADCAM / "sanity.csv"),
    )


def _hashes(folder: Path) -> set[str]:
    files = (file for name in NAMES for file in (folder / name).rglob("*") if file.is_file())
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(_existing(path).read_text(encoding="utf-8"))


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(_existing(path), dtype={"path": str})


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing: run `make report`, or `dvc repro`, which make it.")
    return path
