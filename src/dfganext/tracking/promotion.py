"""Which version is champion: the best of those that may be, compared on images that none of the compared was trained on.

Two detectors are compared by one metric, on the candidate's validation images less those that either was trained on and their
near duplicates. A version with the champion's own weights, but other code, settings or requirements, takes its place.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dfganext import files
from dfganext.data import manifest as manifests
from dfganext.data import split as sampling
from dfganext.errors import UserError
from dfganext.evaluation import intervals, metrics
from dfganext.images import ImageError, decode
from dfganext.inference.detector import OPERATING_POINT_FILE, Detector
from dfganext.labels import FAKE, NAMES, index_of
from dfganext.settings import Promote
from dfganext.tracking import registry, store
from dfganext.tracking.registry import CHAMPION, MODEL, Contents
from dfganext.tracking.store import Client

BATCH = 64
ROUNDS = 10
"""How often a promotion looks again at what others, on other machines, have promoted in the meantime."""
MAX_PROBABILITY_SHIFT = 1e-3
"""How far a faster precision may move p_fake."""
HASHES = ["sha256", "group", "phash", "phash_mirrored"]


@dataclass(frozen=True)
class Data:
    """The candidate's images: split.csv with the manifest's hashes, and the folder that the paths are relative to.

    near_duplicate_bits: as for `sampling.draw`.
    """

    table: pd.DataFrame
    raw: Path
    sha256: str
    near_duplicate_bits: int

    @classmethod
    def read(cls, split: Path, manifest: Path, raw: Path, near_duplicate_bits: int) -> Data:
        """UserError if a file is missing, or unless there are validation images of both classes."""
        hashes = manifests.read(manifest)[["path", "phash", "phash_mirrored"]]
        data = cls(sampling.read(split).merge(hashes, on="path"), raw, files.sha256_of(split), near_duplicate_bits)
        if data.validation.label.nunique() < len(NAMES):
            raise UserError(f"{split} has no validation images of both classes to compare models on; run `dvc repro`.")
        return data

    @cached_property
    def validation(self) -> pd.DataFrame:
        return self.table[self.table.split == sampling.VALIDATION].reset_index(drop=True)

    @cached_property
    def labels(self) -> np.ndarray:
        """(n,) of the validation images: 0 real, 1 fake."""
        return self.validation.label.map(index_of).to_numpy()

    @property
    def trained_on(self) -> pd.DataFrame:
        """A row per training image of this split."""
        return self.table[self.table.split == sampling.TRAIN][HASHES]

    def unseen_by(self, trained_on: pd.DataFrame) -> np.ndarray:
        """Which validation images (bool, n) are neither among those nor near duplicates of one."""
        both = pd.concat([self.validation[HASHES], trained_on], ignore_index=True)
        hashes, mirrored = (sampling.unpack_hashes(both[column]) for column in ("phash", "phash_mirrored"))
        groups = sampling.near_duplicate_groups(hashes, mirrored, self.near_duplicate_bits)
        ours, theirs = groups[: len(self.validation)], groups[len(self.validation) :]
        return ~np.isin(ours, theirs) & ~self.validation.sha256.isin(trained_on.sha256).to_numpy()


@dataclass
class Contender:
    """A version that may be champion, with its p_fake of the candidate's validation images, computed when it is asked for.

    unseen tells which of these images it was not trained on; None where nobody knows.
    """

    version: str
    weights: str
    detector: Detector
    unseen: np.ndarray | None
    data: Data

    @cached_property
    def p_fake(self) -> np.ndarray:
        return probabilities_of(self.detector, [self.data.raw / path for path in self.data.validation.path])

    def score(self, metric: str, rows: np.ndarray | slice = slice(None)) -> float:
        """roc_auc, accuracy at the detector's own threshold, or log_loss, on those of the validation images."""
        labels, p_fake = self.data.labels[rows], self.p_fake[rows]
        if metric == "accuracy":
            return metrics.at_threshold(labels, p_fake, self.detector.threshold)["accuracy"]
        return metrics.log_loss(labels, p_fake) if metric == "log_loss" else metrics.ranking(labels, p_fake)["roc_auc"]


@dataclass(frozen=True)
class Comparison:
    """A contender against another: scores by `metric`, their difference with its 95 % interval, and on how many images.

    refusal says why they cannot be compared; the numbers are None then.
    """

    metric: str
    against: str
    score: float | None = None
    other_score: float | None = None
    difference: float | None = None
    interval: list[float] | None = None
    images: tuple[int, int] = (0, 0)
    refusal: str | None = None

    @property
    def better(self) -> bool:
        """Whether the first is strictly better; of log_loss, less is."""
        if self.difference is None:
            return False
        return self.difference < 0 if self.metric == "log_loss" else self.difference > 0

    def __str__(self) -> str:
        if self.refusal is not None:
            return self.refusal
        assert self.difference is not None and self.interval is not None
        real, fake = self.images
        return (
            f"{self.metric} {self.score:.4f} against the {self.other_score:.4f} of version {self.against} (difference "
            f"{self.difference:+.4f}, 95 % interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f}) on {real} real and {fake} "
            "fake validation images that neither was trained on"
        )


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended.

    outcome is "promoted" (the version is champion now), "refused" (it is registered, the champion stays) or "champion" (it
    was champion already); reason says why in a sentence with the scores. score is the candidate's by `metric` on the images
    of the comparison, on all validation images where there was none. champion is the version that is champion now.
    """

    version: str
    outcome: Literal["promoted", "refused", "champion"]
    reason: str
    metric: str
    score: float
    champion: str | None
    comparison: Comparison | None = None

    def tags(self) -> dict[str, str]:
        """What a version keeps of its last promotion."""
        tags = {
            "promotion": self.outcome,
            "promotion.reason": self.reason,
            "promotion.metric": self.metric,
            "promotion.score": f"{self.score:.6g}",
        }
        found = self.comparison
        if found is not None and found.difference is not None and found.interval is not None:
            tags |= {
                "promotion.against": found.against,
                "promotion.difference": f"{found.difference:.6g}",
                "promotion.interval": " ".join(f"{end:.6g}" for end in found.interval),
                "promotion.images": "{} real, {} fake".format(*found.images),
            }
        return tags


def promote(
    folder: Path,
    operating_point: Path,
    data: Data,
    settings: Promote,
    run_id: str,
    tags: Mapping[str, str] | None = None,
) -> Promotion:
    """Register a detector and make it champion if it is better than the present one.

    Both are scored by this code. A candidate with the identity of a registered version is that version, not a new one. A
    champion whose files are gone or unreadable is replaced, with a warning; one that the store fails to hand over is not.

    Args:
        folder: the candidate's weights and config.
        operating_point: its threshold and temperature.
        settings: metric, fewest images to compare on, and architectures that may become champion.
        run_id: the run that the version is linked to: the one that trained it.
        tags: more for the version, such as the data's hash.

    Raises:
        UserError: the store cannot be used, an image or a model file is missing, or the precision changes the answers.
    """
    client, _ = store.connect()
    with _with_precision(operating_point, settings.precision) as served:
        contents = Contents(folder, served, data.trained_on)
        detector = Detector.load(folder, served)
        if settings.precision != "float32":
            _require_same_answers(detector, Detector.load(folder, operating_point), data, settings.precision)
        with store.lock("promotion"):
            version = registry.register(
                client, contents, detector, run_id, {"dataset.sha256": data.sha256, **(tags or {})}
            )
            weights = contents.identity()["weights.sha256"]
            candidate = Contender(str(version.version), weights, detector, data.unseen_by(data.trained_on), data)
            result = _Election(client, candidate, data, settings).hold()
            _set_tags(client, candidate.version, result.tags())
    return result


def compare(first: Contender, second: Contender, settings: Promote) -> Comparison:
    """First against second, on the validation images that neither was trained on."""
    metric, data = settings.metric, first.data
    for one in (first, second):
        if one.unseen is None:
            return Comparison(
                metric,
                second.version,
                refusal=f"version {one.version} does not say which images it was trained on, so nothing fair can compare it with "
                f"version {first.version}: promote it again from its own commit, or move the alias {CHAMPION} by hand",
            )
    assert first.unseen is not None and second.unseen is not None
    rows = first.unseen & second.unseen
    labels = data.labels[rows]
    images = (int(np.sum(labels != FAKE)), int(np.sum(labels == FAKE)))
    if min(images) < settings.min_images:
        return Comparison(
            metric,
            second.version,
            images=images,
            refusal=f"only {images[0]} real and {images[1]} fake of {len(rows)} validation images are left on which neither version "
            f"{first.version} nor version {second.version} was trained, fewer than promote.min_images ({settings.min_images}) of "
            f"each class: keep subsample.seed as it was for version {second.version}, add images, lower promote.min_images, or move "
            f"the alias {CHAMPION} by hand",
        )
    gap = intervals.paired_difference(
        labels,
        first.p_fake[rows],
        second.p_fake[rows],
        metric,
        groups=data.validation.group.to_numpy()[rows],
        thresholds=(first.detector.threshold, second.detector.threshold),
    )
    return Comparison(
        metric,
        second.version,
        first.score(metric, rows),
        second.score(metric, rows),
        float(gap["difference"]),
        [float(end) for end in gap["interval"]],
        images,
    )


class _Election:
    """Finds the champion among the candidate, the present champion, and what other machines promote at the same time.

    A lock keeps processes of one machine apart; no lock reaches other machines. So each promotion announces its candidate by a
    tag before it looks at the others, gives the alias to the best of all, and looks again until nobody has come in between:
    whoever writes the alias last has seen everybody who announced before.
    """

    def __init__(self, client: Client, candidate: Contender, data: Data, settings: Promote) -> None:
        self.client, self.candidate, self.data, self.settings = client, candidate, data, settings
        self.contenders: dict[str, Contender | None] = {candidate.version: candidate}

    def hold(self) -> Promotion:
        present = registry.champion_of(self.client)
        against = None if present is None else self._contender(present)
        if present is not None and str(present.version) == self.candidate.version:
            score = self.candidate.score(self.settings.metric)
            text = f"Version {self.candidate.version} is the champion already, with {self.settings.metric} {score:.4f}."
            return Promotion(
                self.candidate.version, "champion", text, self.settings.metric, score, self.candidate.version
            )
        architecture = self.candidate.detector.config.architecture
        if _family(architecture) not in {_family(allowed) for allowed in self.settings.architectures}:
            allowed = ", ".join(self.settings.architectures)
            text = f"{architecture} is not among promote.architectures ({allowed})"
            return self._result("refused", text, against, None if present is None else str(present.version))

        decided = {str(one.version) for one in registry.versions(self.client, {"promotion": "promoted"})}
        _set_tags(self.client, self.candidate.version, {"promotion": "contender"})
        for _ in range(ROUNDS):
            field = self._field(decided)
            best = self._best(field)
            if str(getattr(registry.champion_of(self.client), "version", None)) != best.version:
                self.client.set_registered_model_alias(MODEL, CHAMPION, best.version)
            if set(self._field(decided)) <= set(self.contenders):
                break
        if best is not self.candidate:
            return self._result("refused", "", best, best.version)
        if against is not None and against.weights == self.candidate.weights:
            text = (
                f"the weights of version {against.version}, with other code, settings or requirements, take its place"
            )
        elif present is not None and against is None:
            text = f"the champion, version {present.version}, could not be loaded"
        else:
            text = "" if against is not None else "there was no champion"
        return self._result("promoted", text, against, best.version)

    def _field(self, decided: set[str]) -> list[str]:
        """Versions to choose from: the champion, and those in the middle of a promotion or promoted since this one began."""
        present = registry.champion_of(self.client)
        field = [] if present is None else [str(present.version)]
        for state in ("contender", "promoted"):
            field += [str(one.version) for one in registry.versions(self.client, {"promotion": state})]
        settled = decided - set(field[:1] if present is not None else [])
        return [name for name in dict.fromkeys(field) if name not in settled]

    def _best(self, field: list[str]) -> Contender:
        """The champion unless another is better, of equals the first; the candidate takes the place of its own weights."""
        for name in field:
            if name not in self.contenders:
                self._contender(self.client.get_model_version(MODEL, name))
        loaded = [one for name in field if (one := self.contenders[name]) is not None]
        best, *others = loaded or [self.candidate]
        for one in others:
            same_weights = one.weights == best.weights
            if one is self.candidate if same_weights else compare(one, best, self.settings).better:
                best = one
        return best

    def _contender(self, version: Any) -> Contender | None:
        """A registered version, loaded once; None if that cannot be."""
        name = str(version.version)
        if name not in self.contenders:
            loaded = registry.load(self.client, version)
            if loaded is None:
                self.contenders[name] = None
                return None
            trained_on = loaded.trained_on
            if trained_on is None and version.tags.get("dataset.sha256") == self.data.sha256:
                trained_on = self.data.trained_on  # versions of before the list was kept, from this very split
            unseen = None if trained_on is None else self.data.unseen_by(trained_on)
            weights = version.tags.get("weights.sha256", "")
            self.contenders[name] = Contender(name, weights, loaded.detector, unseen, self.data)
        return self.contenders[name]

    def _result(
        self, outcome: Literal["promoted", "refused"], text: str, against: Contender | None, champion: str | None
    ) -> Promotion:
        metric = self.settings.metric
        found = None if against is None else compare(self.candidate, against, self.settings)
        score = self.candidate.score(metric) if found is None or found.score is None else found.score
        told = str(found) if found is not None else f"{metric} {score:.4f} on {len(self.data.labels)} validation images"
        reason = "; ".join(part for part in (text, told) if part)
        return Promotion(
            self.candidate.version, outcome, f"{reason[0].upper()}{reason[1:]}.", metric, score, champion, found
        )


def probabilities_of(detector: Detector, paths: list[Path]) -> np.ndarray:
    """A detector's p_fake of image files, float64 (n,); one batch in memory at a time. UserError if one cannot be decoded."""
    p_fake: list[float] = []
    for start in range(0, len(paths), BATCH):
        pixels = [detector.config.prepare(_pixels(path)) for path in paths[start : start + BATCH]]
        p_fake += detector.probabilities(np.stack(pixels)).tolist()
    return np.array(p_fake)


def _pixels(path: Path) -> np.ndarray:
    """A decoded image of the data set; it was within the limits of `download`, which may be wider than the served model's."""
    try:
        return decode(path.read_bytes(), math.inf, 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro download`, or `dvc checkout`.") from None
    except ImageError as error:
        raise UserError(f"{path} cannot be decoded: {error}; run `dvc repro download`.") from None


@contextmanager
def _with_precision(operating_point: Path, precision: str) -> Iterator[Path]:
    """The operating point of the served model: the file as it is for float32, else one that names the precision too."""
    if precision == "float32":
        yield operating_point
        return
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / OPERATING_POINT_FILE
        point = json.loads(operating_point.read_text(encoding="utf-8"))
        files.write_json(target, point | {"precision": precision}, files.EXACT)
        yield target


def _require_same_answers(fast: Detector, exact: Detector, data: Data, precision: str) -> None:
    paths = [data.raw / path for path in data.validation.path]
    shift = float(np.max(np.abs(probabilities_of(fast, paths) - probabilities_of(exact, paths))))
    if shift > MAX_PROBABILITY_SHIFT:
        raise UserError(
            f"promote.precision: {precision} moves p_fake by up to {shift:.2g} on the validation images, more than "
            f"{MAX_PROBABILITY_SHIFT:g}: set it to float32."
        )


def _set_tags(client: Client, version: str, tags: Mapping[str, str]) -> None:
    for tag, text in tags.items():
        client.set_model_version_tag(MODEL, version, tag, text)


def _family(architecture: str) -> str:
    """convnext_tiny.fb_in1k is a convnext_tiny: what follows the dot names the weights."""
    return architecture.split(".")[0]
