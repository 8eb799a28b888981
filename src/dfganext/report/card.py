"""The model card of a registered version: its use, data, settings and measurements, in Markdown.

It begins with the metadata that the Hugging Face hub reads.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dfganext.evaluation.external import DECISION_TITLES
from dfganext.labels import NAMES
from dfganext.report import text
from dfganext.settings import STRENGTHS, Convnext, Settings

TITLES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "log_loss": "log loss, in nats",
    "ece": "calibration error (ECE)",
}
"""Of the metrics on the test images; "fake" is the positive class."""

_METADATA = re.compile(r"\A---\n.*?\n---\n\s*", re.DOTALL)


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        version: number of the registered version.
        split: the images of all splits, as `split.read` returns them. split_sha256: of the file.
        sample: whether these are the images of the embedded sample.
        scores: metrics of the classifier, as `evaluate` writes them.
        robustness: as `robustness.measure` returns it, with trained_on.
        external: metrics of other labelled sets, by name.
        promotion: one sentence about the comparison with the champion.
        run_id: of the training. commit: of the code, if known.
    """

    version: str
    settings: Settings
    split: pd.DataFrame
    split_sha256: str
    sample: bool
    scores: dict[str, Any]
    robustness: pd.DataFrame
    external: dict[str, Any]
    promotion: str
    run_id: str
    commit: str | None = None


@dataclass(frozen=True)
class Known:
    """data: what the training and test images are. accuracy: on the test images."""

    data: str
    accuracy: float

    @property
    def sample(self) -> bool:
        """Whether the images are the embedded sample."""
        return self.data == text.SAMPLE


def render(facts: Facts) -> str:
    """The card: metadata between lines of `---`, then Markdown."""
    table = facts.robustness
    degraded = table[table["transform"] != "none"].to_dict("records")
    content = text.template("card.md", cell, autoescape=False).render(
        **vars(facts),
        network=facts.settings.convnext,
        data=_data(facts),
        counts=pd.crosstab(facts.split.split, facts.split.label).reindex(
            index=["train", "validation", "test"], columns=list(NAMES), fill_value=0
        ),
        training=_training(facts.settings),
        titles=TITLES,
        decisions=facts.scores["decisions"],
        decision_titles=DECISION_TITLES,
        max_error=f"{100 * facts.scores['decisions']['max_error']:g} %",
        degraded=degraded,
        worst=min(degraded, key=itemgetter("accuracy")),
        best=max(degraded, key=itemgetter("accuracy")),
        warning=text.SAMPLE_WARNING,
    )
    metadata = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n{content}"


def body(card: str) -> str:
    """A card without its metadata, if it has any."""
    return _METADATA.sub("", card)


def known(card: str | None) -> Known | None:
    """What a card's metadata say of the test images; None without a card or such metadata."""
    found = _METADATA.match(card or "")
    if found is None:
        return None
    try:
        (result,) = yaml.safe_load(found[0].strip().strip("-"))["model-index"][0]["results"]
        metrics = {one["type"]: float(one["value"]) for one in result["metrics"]}
        name = result["dataset"]["name"]
        # not made text with str: nested aliases would fill memory
        return Known(name, metrics["accuracy"]) if isinstance(name, str) else None
    except (yaml.YAMLError, LookupError, TypeError, ValueError):  # a card that others have written
        return None


def description(card: str, characters: int) -> str:
    """The first sections of a card, without its metadata, as many as fit into `characters`."""
    head = body(card)
    if len(head) <= characters:
        return head
    rest = "\n\nThe whole card is README.md among the files of this version."
    room = characters - len(rest)
    while len(head) > room and "\n\n## " in head:
        head = head.rpartition("\n\n## ")[0]
    return head[:room] + rest


def cell(value: object) -> str:
    """Text as one line, which ends no cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _metadata(facts: Facts) -> dict[str, Any]:
    scores = facts.scores
    metrics = [{"type": name, "value": float(scores[name])} for name in ("accuracy", "f1", "roc_auc")]
    dataset = {"name": _data(facts), "type": "df-ganext", "split": "test"}
    result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
    return {
        "license": "apache-2.0" if facts.sample else "other",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["gan-detection", "deepfake-detection", "faces", facts.settings.convnext.architecture],
        "model-index": [{"name": f"df-ganext, version {facts.version}", "results": [result]}],
    }


def _data(facts: Facts) -> str:
    return cell(text.data_name(facts.settings, len(facts.split), facts.sample))


def _training(settings: Settings) -> str:
    """The settings of training as YAML; of the augmentations those that are on."""
    convnext = _plain(settings.convnext)
    return yaml.safe_dump(
        {"loss": settings.loss, "seed": settings.seed, "convnext": convnext}, sort_keys=False, default_flow_style=None
    ).strip()


def _plain(settings: Convnext) -> dict[str, Any]:
    values = asdict(settings)
    augment = values["augment"]
    on = {name: value for name, value in augment.items() if (value["p"] if name in STRENGTHS else value)}
    on = {name: value | {"range": list(value["range"])} if name in STRENGTHS else value for name, value in on.items()}
    # of a weights file only the name: its folder is this machine's
    return values | {"weights": Path(settings.weights).name, "augment": on}
