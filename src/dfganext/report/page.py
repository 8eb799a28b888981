"""The page: every table, figure and conclusion in one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from dfganext import paths
from dfganext.data.arrays import Images
from dfganext.density.protocols import lone_point
from dfganext.evaluation import intervals
from dfganext.labels import ALL
from dfganext.report import figures, text, verdicts
from dfganext.report.evidence import Evidence
from dfganext.report.table1 import Row, compare, groups_of, is_fake
from dfganext.settings import Augment, flatten

METRICS = {
    "accuracy": "accuracy at the decision threshold",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "tpr_at_1_percent_fpr": "true positive rate at 1 % false positives",
    "tpr_at_half_percent_fpr": "true positive rate at 0.5 % false positives",
    "log_loss": "log loss, nats",
    "brier": "Brier score",
    "ece": "expected calibration error, 15 bins",
}
STATISTICS = {
    "maximum": "intensity, maximum",
    "mean": "intensity, mean",
    "entropy": "spread: normalised entropy",
    "effective_area": "spread: effective area",
    "above_half": "spread: share above half the maximum",
    "gini": "concentration: Gini",
    "face_mass": "mass in the face ellipse",
}


def draw(evidence: Evidence) -> dict[str, Path]:
    """Write the page's own figures, at print quality; return their paths and those of the stages' figures, by name."""
    settings, scores = evidence.settings, evidence.evaluate["convnext"]
    drawn = {
        "samples": figures.samples(_random_images(evidence.train, settings.seed)),
        "augmentation": figures.augmentation(
            augmentation_examples(evidence.train, settings.convnext.augment, settings.seed)
        ),
        "curves": figures.curves(evidence.curves, scores),
        "reliability": figures.reliability(evidence.reliability, scores["uncalibrated"], scores, scores["temperature"]),
        "robustness": figures.robustness(evidence.robustness),
        "map_statistics": figures.map_statistics(evidence.comparison),
        "faithfulness": figures.faithfulness(evidence.faithfulness_curves),
        "published_density": figures.published_density(evidence.densities),
    }
    found = {
        "evaluation": paths.EVALUATION_FIGURE,
        "gradcam_real": paths.GRADCAM_REAL_FIGURE,
        "gradcam_fake": paths.GRADCAM_FAKE_FIGURE,
        "density": paths.DENSITY_FIGURE,
    }
    for name, figure in drawn.items():
        found[name] = paths.PAGE_FIGURES / f"{name}.png"
        figures.save(figure, found[name])
    return found


def render(evidence: Evidence, figure_paths: dict[str, Path]) -> str:
    """The page as HTML, with embedded figures.

    Args:
        figure_paths: from `draw`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dfganext.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    formats = {name: getattr(text, name) for name in ("number", "percent", "span", "percents", "confidence")}
    environment.filters |= {**formats, "code": code}
    paper, table2 = (evidence.paper if evidence.settings.report.paper else None), evidence.paper["table2"]
    return environment.get_template("page.html").render(
        evidence=evidence,
        paper=paper,
        paper_lone_point=lone_point(table2["dimension"], table2["bandwidth"], table2["points"]),
        settings={key: value for key, value in flatten(evidence.settings).items() if not key.startswith("machine.")},
        counts=pd.crosstab(evidence.split.split, evidence.split.label).reindex(["train", "validation", "test"]),
        conclusions=verdicts.all_claims(evidence) if paper else [],
        table1=[_table1_row(row, evidence) for row in evidence.rows],
        spectrum_interval=_spectrum_interval(evidence),
        mcnemar=compare(evidence.row("convnext_ce"), evidence.row("convnext_bce")),
        metrics=_metrics(evidence),
        robustness=evidence.robustness.to_dict(orient="records"),
        comparison=_comparison(evidence),
        faithfulness=evidence.faithfulness.to_dict(orient="records"),
        sanity=evidence.sanity.groupby("depth", sort=False).similarity.agg(["mean", "count"]).to_dict(orient="index"),
        correlations=evidence.density_and_spread,
        picture={name: _embedded(path) for name, path in figure_paths.items()},
    )


def code(sentence: str) -> Markup:
    """Text as HTML, its `backticked` parts as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def augmentation_examples(images: Images, augment: Augment, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A random real and a random fake image, unchanged, with each augmentation alone, and with all as in training.

    Returns:
        {title: (real, fake)}, uint8 images. A title gives the probability of its augmentation in training.
    """
    off = dict.fromkeys(("horizontal_flip", "vertical_flip", "rotation", "distortion", "colour_jitter"), 0.0)
    versions: dict[str, Augment | None] = {
        "original": None,
        f"horizontal flip\np = {augment.horizontal_flip:g}": Augment(**off | {"horizontal_flip": 1.0}),
        f"vertical flip\np = {augment.vertical_flip:g}": Augment(**off | {"vertical_flip": 1.0}),
        f"rotation, ±{augment.rotation:g}°\np = {0.5 if augment.rotation else 0:g}": Augment(
            **off | {"rotation": augment.rotation}
        ),
        f"distortion\np = {augment.distortion:g}": Augment(**off | {"distortion": 1.0}),
        f"colour jitter\np = {augment.colour_jitter:g}": Augment(**off | {"colour_jitter": 1.0}),
        "as in training": augment,
    }
    rng = np.random.default_rng([seed, 2])
    real, fake = (np.array(images.pixels[rng.permutation(images.only(label))[0]]) for label in ALL)
    return {title: (_augmented(real, version), _augmented(fake, version)) for title, version in versions.items()}


def _augmented(image: np.ndarray, augment: Augment | None) -> np.ndarray:
    """The first of 100 seeded draws that changes the image; the image itself if none does."""
    if augment is None:
        return image
    from dfganext.training.augment import compose  # imports torch, which the rest of the page does not need

    transform = compose(augment)
    for seed in range(100):
        transform.set_random_seed(seed)
        changed = transform(image=image)["image"]
        if not np.array_equal(changed, image):
            return changed
    return image


def _random_images(images: Images, seed: int, count: int = 8) -> list[np.ndarray]:
    """Random images of each class: for real and fake, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    return [images.pixels[rng.permutation(images.only(label))[:count]] for label in ALL]


def _table1_row(row: Row, evidence: Evidence) -> dict[str, Any]:
    published = evidence.paper["table1"][row.key]
    images = evidence.paper["images"]
    cells: dict[str, Any] = {
        "row": row,
        "paper": published["accuracy"],
        "paper_interval": intervals.wilson(published["accuracy"] * images, images),
        "paper_f1": published.get("f1"),
    }
    if row.records and row.part == "convnext" and not row.key.endswith("argmax"):
        cells["f1"] = row.f1
    if row.records and row.part == "autoencoder":
        cells["autoencoder"] = row.records[0].scores["autoencoder"]
    return cells


def _spectrum_interval(evidence: Evidence) -> intervals.Interval:
    """Interval of the spectrum baseline's accuracy at p_fake > 0.5."""
    table = evidence.baseline_predictions
    return intervals.proportion((table.p_fake > 0.5).to_numpy() == is_fake(table), groups_of(table))


def _metrics(evidence: Evidence) -> list[dict[str, Any]]:
    """One row per metric: value and interval for the network, the spectrum baseline and the autoencoder."""
    models = (evidence.evaluate["convnext"], evidence.baseline, evidence.evaluate["autoencoder"])
    return [
        {"title": title, "cells": [(scores.get(name), scores["intervals"].get(name)) for scores in models]}
        for name, title in METRICS.items()
    ]


def _comparison(evidence: Evidence) -> list[dict[str, Any]]:
    """One row per statistic: Cliff's delta, interval and Holm's p by target."""
    rows = []
    for name, title in STATISTICS.items():
        found = evidence.comparison[evidence.comparison.statistic == name].set_index("comparison")
        if len(found):
            cells = {str(target): values.to_dict() for target, values in found.iterrows()}
            rows.append({"title": title, "cells": cells})
    return rows


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
