"""What is known of the model that the demo uses, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dfganext.evaluation.decision import DecisionRule
from dfganext.inference.detector import Detector
from dfganext.inference.operating_point import NOT_CALIBRATED
from dfganext.report import card
from dfganext.report.text import SAMPLE_WARNING, percent
from dfganext.tracking import registry, store
from dfganext.tracking.store import NotFoundError


@dataclass(frozen=True)
class Facts:
    """name of the model. summary: what was measured, in a few words; empty if that is not known. rows: (name, value) of all that is
    known. card: the model card, in Markdown, or None. notes: sentences that every reader of a decision must know."""

    name: str
    summary: str
    rows: tuple[tuple[str, str], ...]
    rule: DecisionRule | None
    card: str | None = None
    notes: tuple[str, ...] = ()


def read(uri: str, folder: Path, detector: Detector, champion: bool = False) -> Facts:
    """The facts of a model.

    Args:
        uri: as from `registry.pinned`; the tags of a registered version are read from the registry.
        folder: of the detector, as from `registry.resolve`.
        champion: whether the model was loaded as the champion.
    """
    tags, config = _tags(uri), detector.config
    trained_on, found = registry.trained_on(folder), registry.card(folder)
    images = tags.get("trained_on.images") or (None if trained_on is None else str(len(trained_on)))
    described = card.known(found)
    share = tags.get("test.accuracy", None if described is None else described.accuracy)
    accuracy = None if share is None else percent(float(share))
    parts = [images and f"{images} images", None if described is None else described.data]
    name = f"{uri}, the champion" if champion else uri
    notes = [] if detector.calibrated else [NOT_CALIBRATED]
    if described is not None and described.sample:
        notes.append(SAMPLE_WARNING)
    known = {
        "model": name,
        "network": f"{config.architecture}, {config.size} × {config.size} pixels, loss {config.loss}",
        "trained on": ", ".join(filter(None, parts)),
        "data set": tags.get("dataset.sha256") and f"sha256 {tags['dataset.sha256']}",
        "measured accuracy": accuracy and f"{accuracy} of the images of the test split got the right label",
        "decision threshold": f"{detector.threshold:.4g}, chosen on the validation split",
        "promotion": tags.get("promotion.reason"),
    }
    return Facts(
        name=name,
        summary=f"accuracy {accuracy} on its test images" if accuracy else "",
        rows=tuple((title, value) for title, value in known.items() if value),
        rule=detector.decision,
        card=None if found is None else card.body(found),
        notes=tuple(notes),
    )


def _tags(uri: str) -> Mapping[str, str]:
    """The tags of a registered version; none for other models."""
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    if uri.startswith("models:/") and version.isdigit():
        with suppress(NotFoundError):
            return store.connect()[0].get_model_version(name, version).tags
    return {}
