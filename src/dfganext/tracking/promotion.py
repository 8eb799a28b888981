"""Register a detector, and make it champion if it is better than the current champion.

Detectors are compared as in comparison.py. A version with the champion's weights, but other code, settings or requirements,
replaces the champion without a comparison.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from dfganext import files
from dfganext.errors import UserError
from dfganext.inference import onnx_model
from dfganext.inference.detector import Detector
from dfganext.inference.engines import MAX_DIFFERENCE
from dfganext.models.folder import FEATURES_FILE, ONNX_FILE, OPERATING_POINT_FILE
from dfganext.settings import Promote
from dfganext.tracking import processes, registry, store
from dfganext.tracking.comparison import Candidate, Comparison, Data, compare, probabilities_of
from dfganext.tracking.registry import CHAMPION, MODEL, Contents
from dfganext.tracking.store import Client
from dfganext.training import compute

Outcome = Literal["promoted", "refused", "champion"]

MAX_PROBABILITY_SHIFT = 1e-3
"""Maximum change of p_fake from a faster precision; another engine with the same precision may change it by `MAX_DIFFERENCE`."""


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion.

    outcome is "promoted" (the version is the new champion), "refused" (it is registered, and the champion stays) or "champion"
    (it was champion already); reason explains it, with the scores. score is the candidate's by `metric` on the images of the
    comparison, or on all validation images without a comparison. champion is the version that is champion now.
    """

    version: str
    outcome: Outcome
    reason: str
    metric: str
    score: float
    champion: str | None
    comparison: Comparison | None = None

    def tags(self) -> dict[str, str]:
        """Tags of a version about its last promotion."""
        tags = {
            "promotion": self.outcome,
            "promotion.reason": self.reason,
            "promotion.metric": self.metric,
            "promotion.score": f"{self.score:.6g}",
        }
        comparison = self.comparison
        if comparison is not None and not comparison.refusal:
            tags |= {
                "promotion.against": comparison.against,
                "promotion.difference": f"{comparison.difference:.6g}",
                "promotion.interval": " ".join(f"{end:.6g}" for end in comparison.interval),
                "promotion.images": "{} real, {} fake".format(*comparison.images),
            }
        return tags


def promote(
    folder: Path,
    operating_point: Path,
    data: Data,
    settings: Promote,
    run_id: str,
    tags: Mapping[str, str] | None = None,
    device: torch.device | None = None,
) -> Promotion:
    """Register a detector and make it champion if it is better than the current champion.

    This code scores both. A detector with the identity of a registered version is that version, not a new one. A champion
    whose files are gone or damaged is replaced, with a warning; it is not replaced if the store fails, or if it cannot be loaded
    for another reason.

    Args:
        folder: weights and config of the detector.
        operating_point: its threshold, temperature and rule for decisions; beside it, the features that the rule needs.
        run_id: the run that trained it; a new version is linked to this run.
        tags: additional tags for a new version.
        device: where both are scored; by default a GPU where there is one.

    Raises:
        UserError: the store cannot be used, an image or a model file is missing, the champion cannot be loaded here, the precision
            or the engine cannot be used here, or they change the predictions.
    """
    client, _ = store.connect()
    with tempfile.TemporaryDirectory() as temporary:
        served, detector = _served(folder, operating_point, Path(temporary), data, settings, device)
        with store.lock("promotion"):
            all_tags = {"dataset.sha256": data.sha256, **(tags or {})}
            version = registry.register(client, Contents(folder, served, data.trained_on), detector, run_id, all_tags)
            candidate = _candidate(version, detector, data.trained_on, data)
            promotion = _Selection(client, candidate, settings).run()
            _set_tags(client, candidate.version, promotion.tags())
    return promotion


class _Selection:
    """Selects the champion from the candidate, the current champion, and the candidates of simultaneous promotions.

    A lock excludes other processes of this machine, but not other machines. Therefore each promotion tags its candidate before
    it reads the others, gives the alias to the best of all, and repeats this until there is no new candidate. So the
    promotion that sets the alias last has compared every candidate tagged before.
    """

    def __init__(self, client: Client, candidate: Candidate, settings: Promote) -> None:
        self.client, self.candidate, self.settings = client, candidate, settings
        self.loaded: dict[str, Candidate | None] = {candidate.version: candidate}
        self.compare = functools.cache(lambda first, second: compare(first, second, settings))

    def run(self) -> Promotion:
        """Select the champion and set the alias."""
        champion = registry.champion(self.client)
        name = None if champion is None else str(champion.version)
        if name == self.candidate.version:
            return self._result("champion", "it is the champion already", None, name)
        current = None if champion is None else self._load(champion)
        architecture = self.candidate.detector.config.architecture
        if _family(architecture) not in {_family(allowed) for allowed in self.settings.architectures}:
            allowed = ", ".join(self.settings.architectures)
            reason = f"{architecture} is not among promote.architectures ({allowed})"
            return self._result("refused", reason, current, name)
        best = self._select()
        if best is not self.candidate:
            return self._result("refused", "", best, best.version)
        if champion is None:
            reason = "there was no champion"
        elif current is None:
            reason = f"the champion, version {name}, could not be loaded"
        elif current.weights_sha256 == self.candidate.weights_sha256:
            reason = f"it has the weights of version {name}, with other code, settings or requirements, and replaces it"
        else:
            reason = ""
        return self._result("promoted", reason, current, best.version)

    def _select(self) -> Candidate:
        """Give the alias to the best version."""
        promoted = {one.version for one in registry.versions(self.client) if one.tags.get("promotion") == "promoted"}
        _set_tags(self.client, self.candidate.version, {**processes.tags(), "promotion": "candidate"})  # in this order
        versions = self._contenders(promoted)
        while True:
            best = self._best(versions)
            self.client.set_registered_model_alias(MODEL, CHAMPION, best.version)
            versions = self._contenders(promoted)
            if self.loaded.keys() >= {str(one.version) for one in versions}:
                return best

    def _contenders(self, promoted: set[Any]) -> list[Any]:
        """The champion, the versions now in a promotion, and those promoted since this one began (not in `promoted`)."""
        champion = registry.champion(self.client)
        tagged = []
        for one in registry.versions(self.client):
            if _is_interrupted(one):
                one = self.client.get_model_version(MODEL, one.version)  # it may have ended well since it was listed
                if _is_interrupted(one):
                    _set_tags(self.client, one.version, {"promotion": "interrupted"})
                    continue
            tag = one.tags.get("promotion")
            if tag == "candidate" or (tag == "promoted" and one.version not in promoted):
                tagged.append(one)
        return tagged if champion is None else [champion, *tagged]

    def _best(self, versions: Iterable[Any]) -> Candidate:
        """The first version that no other is better than; the candidate is better than a version with the same weights."""
        best, *others = [*filter(None, map(self._load, versions)), self.candidate]
        for other in others:
            same_weights = other.weights_sha256 == best.weights_sha256
            if other is self.candidate if same_weights else self.compare(other, best).better:
                best = other
        return best

    def _load(self, version: Any) -> Candidate | None:
        """A registered version, loaded once; None if its files are damaged, or if it is not champion and cannot be loaded here."""
        name = str(version.version)
        if name not in self.loaded:
            try:
                loaded = registry.load(self.client, version, self.candidate.detector.device)
            except registry.NotLoadableError as error:
                champion = registry.champion(self.client)
                if champion is not None and name == str(champion.version):
                    raise
                warnings.warn(str(error), stacklevel=2)
                loaded = None
            self.loaded[name] = None if loaded is None else _candidate(version, *loaded, self.candidate.data)
        return self.loaded[name]

    def _result(self, outcome: Outcome, reason: str, against: Candidate | None, champion: str | None) -> Promotion:
        metric = self.settings.metric
        comparison = None if against is None else self.compare(self.candidate, against)
        score = self.candidate.score(metric) if comparison is None else comparison.score
        details = comparison or f"{metric} {score:.4f} on {len(self.candidate.data.labels)} validation images"
        text = "; ".join(filter(None, (reason, str(details))))
        if not text.startswith(metric):
            text = f"{text[0].upper()}{text[1:]}"
        return Promotion(self.candidate.version, outcome, f"{text}.", metric, score, champion, comparison)


def _is_interrupted(version: Any) -> bool:
    """Whether the process that promoted a version has ended without a result."""
    return version.tags.get("promotion") == "candidate" and processes.has_ended(version.tags)


def _candidate(version: Any, detector: Detector, trained_on: pd.DataFrame | None, data: Data) -> Candidate:
    return Candidate(str(version.version), version.tags.get("weights.sha256", ""), detector, trained_on, data)


def _served(
    folder: Path, operating_point: Path, target: Path, data: Data, settings: Promote, device: torch.device | None
) -> tuple[Path, Detector]:
    """The operating point of the served model in the folder `target`, with features and ONNX model beside it; and its detector."""
    if settings.engine != "torch":
        device = torch.device("cpu")
    exact = Detector.load(folder, operating_point, device)
    served = target / OPERATING_POINT_FILE
    point = json.loads(operating_point.read_text(encoding="utf-8"))
    engine = {} if settings.engine == "torch" else {"engine": settings.engine}
    files.write_json(served, point | {"precision": settings.precision, **engine}, files.EXACT)
    features = operating_point.parent / FEATURES_FILE
    if features.is_file():
        shutil.copyfile(features, target / FEATURES_FILE)
    if engine:
        onnx_model.write(exact, target / ONNX_FILE, "set promote.engine to torch", settings.engine)
    detector = Detector.load(folder, served, device)
    if engine or settings.precision != "float32":
        _require_same_predictions(detector, exact, data, settings)
    return served, detector


def _require_same_predictions(served: Detector, exact: Detector, data: Data, settings: Promote) -> None:
    """UserError if precision or engine change a p_fake of the validation images by more than their limit."""
    if settings.precision == "float32":
        limit, setting, cure = MAX_DIFFERENCE, f"promote.engine: {settings.engine}", "torch"
    else:
        limit, setting, cure = MAX_PROBABILITY_SHIFT, f"promote.precision: {settings.precision}", "float32"
        if compute.precision("auto", exact.device) == torch.float32:
            raise UserError(
                f"{setting} cannot be measured here, because the {exact.device.type} does not compute in {settings.precision}: set "
                "it to float32, or promote on a machine that does."
            )
    paths = [data.raw / path for path in data.validation.path]
    shift = float(np.max(np.abs(probabilities_of(served, paths) - probabilities_of(exact, paths))))
    if shift > limit:
        raise UserError(
            f"{setting} moves p_fake by up to {shift:.2g} on the validation images, more than {limit:g}: set it to {cure}."
        )


def _set_tags(client: Client, version: str, tags: Mapping[str, str]) -> None:
    for tag, text in tags.items():
        client.set_model_version_tag(MODEL, version, tag, text)


def _family(architecture: str) -> str:
    """The architecture without the name of its weights: convnext_tiny of convnext_tiny.fb_in1k."""
    return architecture.split(".")[0]
