"""Compare two detectors by one metric, on validation images that neither was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from dfganext import files
from dfganext.data import manifest as manifests
from dfganext.data import split as splits
from dfganext.errors import UserError
from dfganext.evaluation import intervals, metrics
from dfganext.images import read_image
from dfganext.inference.detector import Detector
from dfganext.labels import FAKE, NAMES, index_of
from dfganext.settings import Promote

BATCH = 64
HASHES = ["sha256", "group", "phash", "phash_mirrored"]


@dataclass(frozen=True)
class Data:
    """The images of one split, with their hashes.

    table: split.csv joined with the hashes of manifest.csv. raw: the folder that the paths are relative to. sha256: of
    split.csv. near_duplicate_bits: as in the settings, `subsample.near_duplicate_bits`.
    """

    table: pd.DataFrame
    raw: Path
    sha256: str
    near_duplicate_bits: int

    @classmethod
    def read(cls, split: Path, manifest: Path, raw: Path, near_duplicate_bits: int) -> Data:
        """UserError if a file is missing, or if a class has no validation images."""
        hashes = manifests.read(manifest)[["path", "phash", "phash_mirrored"]]
        data = cls(splits.read(split).merge(hashes, on="path"), raw, files.sha256_of(split), near_duplicate_bits)
        if data.validation.label.nunique() < len(NAMES):
            raise UserError(f"{split} has no validation images of both classes to compare models on; run `dvc repro`.")
        return data

    @cached_property
    def validation(self) -> pd.DataFrame:
        """One row per validation image."""
        return self.table[self.table.split == splits.VALIDATION].reset_index(drop=True)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of the validation images (n,): 0 real, 1 fake."""
        return self.validation.label.map(index_of).to_numpy()

    @property
    def trained_on(self) -> pd.DataFrame:
        """One row per training image of this split."""
        return self.table[self.table.split == splits.TRAIN][HASHES]

    def unseen_by(self, trained_on: pd.DataFrame) -> np.ndarray:
        """Which validation images (bool, n) are neither these training images, as `trained_on`, nor near duplicates of one."""
        _, near = splits.groups_beside(self.validation, trained_on, self.near_duplicate_bits)
        return ~near & ~self.validation.sha256.isin(trained_on.sha256).to_numpy()


@dataclass(eq=False)
class Candidate:
    """A registered version that may become champion, and its scores on the validation images.

    trained_on has one row per training image, as `Data.trained_on`; None if the version has no list of them.
    """

    version: str
    weights_sha256: str
    detector: Detector
    trained_on: pd.DataFrame | None
    data: Data

    @cached_property
    def unseen(self) -> np.ndarray:
        """Which validation images (bool, n) it was not trained on; none without a list of its training images."""
        if self.trained_on is None:
            return np.zeros(len(self.data.validation), bool)
        return self.data.unseen_by(self.trained_on)

    @cached_property
    def p_fake(self) -> np.ndarray:
        """(n,), computed on first use."""
        return probabilities_of(self.detector, [self.data.raw / path for path in self.data.validation.path])

    def score(self, metric: str, rows: np.ndarray | slice = slice(None)) -> float:
        """roc_auc, accuracy at the detector's own threshold, or log_loss, on these validation images."""
        labels, p_fake = self.data.labels[rows], self.p_fake[rows]
        if metric == "accuracy":
            return metrics.at_threshold(labels, p_fake, self.detector.threshold)["accuracy"]
        return metrics.log_loss(labels, p_fake) if metric == "log_loss" else metrics.ranking(labels, p_fake)["roc_auc"]


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with another version, `against`, on so many real and fake images.

    Holds both scores by `metric`, and their difference with its 95 % interval. If the two cannot be compared, refusal says why,
    score is the candidate's on all validation images, and the other numbers are missing.
    """

    metric: str
    against: str
    images: tuple[int, int]
    score: float = math.nan
    other_score: float = math.nan
    difference: float = math.nan
    interval: tuple[float, ...] = ()
    refusal: str | None = None

    @property
    def better(self) -> bool:
        """Whether the candidate is strictly better: a higher score, or a lower log_loss."""
        return self.difference < 0 if self.metric == "log_loss" else self.difference > 0

    def __str__(self) -> str:
        if self.refusal is not None:
            return self.refusal
        (real, fake), (low, high) = self.images, self.interval
        return (
            f"{self.metric} {self.score:.4f} against the {self.other_score:.4f} of version {self.against} (difference "
            f"{self.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}) on {real} real and {fake} fake validation images "
            "that neither was trained on"
        )


def compare(first: Candidate, second: Candidate, settings: Promote) -> Comparison:
    """Compare the first with the second on the validation images that neither was trained on."""
    metric, data = settings.metric, first.data
    rows = first.unseen & second.unseen
    labels = data.labels[rows]
    real, fake = images = (int(np.sum(labels != FAKE)), int(np.sum(labels == FAKE)))
    if min(images) < settings.min_images:
        refusal = (
            f"only {real} real and {fake} fake of {len(rows)} validation images are left on which neither version "
            f"{first.version} nor version {second.version} was trained, fewer than promote.min_images ({settings.min_images}) of "
            f"each class: keep subsample.seed as it was for version {second.version}, add images, lower promote.min_images, or "
            "move the alias champion by hand"
        )
        for one in (first, second):
            if one.trained_on is None:
                refusal = f"version {one.version} has no list of its training images, so {refusal}"
        return Comparison(metric, second.version, images, first.score(metric), refusal=refusal)
    groups = data.validation.group.to_numpy()[rows]
    thresholds = (first.detector.threshold, second.detector.threshold)
    paired = intervals.paired_difference(labels, first.p_fake[rows], second.p_fake[rows], metric, groups, thresholds)
    scores = (first.score(metric, rows), second.score(metric, rows))
    return Comparison(metric, second.version, images, *scores, paired["difference"], tuple(paired["interval"]))


def probabilities_of(detector: Detector, paths: list[Path]) -> np.ndarray:
    """A detector's p_fake for image files, float64 (n,), batch by batch. UserError if a file cannot be decoded."""
    p_fake: list[float] = []
    for start in range(0, len(paths), BATCH):
        pixels = [detector.config.prepare(read_image(path)) for path in paths[start : start + BATCH]]
        p_fake += detector.probabilities(np.stack(pixels)).tolist()
    return np.array(p_fake)
