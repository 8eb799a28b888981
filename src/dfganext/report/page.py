"""The page: every table, figure and verdict in one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from dfganext import paths
from dfganext.density.protocols import lone_point
from dfganext.evaluation import intervals
from dfganext.report import figures as pictures
from dfganext.report import plots as figures
from dfganext.report import verdicts
from dfganext.report.evidence import Evidence
from dfganext.report.table1 import Row, compare, groups_of, is_fake
from dfganext.report.text import confidence, number, percent, percents, span
from dfganext.settings import flatten

MEASURES = {
    "accuracy": "accuracy at the threshold",
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
    """Draw the page's own figures, at print quality, beside those of the stages; returns all, by name."""
    chosen, scores = evidence.settings, evidence.evaluate["convnext"]
    drawn = {
        "samples": pictures.samples(evidence.train, chosen.seed),
        "augmentation": pictures.augmentation(evidence.train, chosen.convnext.augment, chosen.seed),
        "curves": pictures.curves(evidence.curves, scores),
        "reliability": pictures.reliability(
            evidence.reliability, scores["uncalibrated"], scores, scores["temperature"]
        ),
        "robustness": pictures.robustness(evidence.robustness),
        "map_statistics": pictures.map_statistics(evidence.comparison),
        "faithfulness": pictures.faithfulness(evidence.faithfulness_curves),
        "published_density": pictures.published_density(evidence.densities),
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


def render(evidence: Evidence, pictures_by_name: dict[str, Path]) -> str:
    """The page as HTML, pictures embedded.

    Args:
        pictures_by_name: as `draw` returns them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dfganext.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "span": span,
        "percents": percents,
        "code": code,
        "confidence": confidence,
    }
    environment.globals["closed_form"] = lambda table: lone_point(
        table["dimension"], table["bandwidth"], table["points"]
    )
    paper = evidence.settings.report.paper
    return environment.get_template("page.html").render(
        e=evidence,
        paper=evidence.paper if paper else None,
        settings={key: value for key, value in flatten(evidence.settings).items() if not key.startswith("machine.")},
        counts=pd.crosstab(evidence.split.split, evidence.split.label).reindex(["train", "validation", "test"]),
        verdicts=verdicts.all_claims(evidence) if paper else [],
        table1=[_table1_row(row, evidence) for row in evidence.rows],
        spectrum_interval=_spectrum_interval(evidence),
        mcnemar=compare(evidence.row("convnext_ce"), evidence.row("convnext_bce")),
        measures=_measures(evidence),
        robustness=evidence.robustness.to_dict(orient="records"),
        comparison=_comparison(evidence),
        faithfulness=evidence.faithfulness.to_dict(orient="records"),
        sanity=evidence.sanity.groupby("depth", sort=False).similarity.agg(["mean", "count"]).to_dict(orient="index"),
        correlations=evidence.density_and_spread,
        picture={name: _embedded(path) for name, path in pictures_by_name.items()},
    )


def code(text: str) -> Markup:
    """Text whose `backticked` parts are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _table1_row(row: Row, evidence: Evidence) -> dict[str, Any]:
    published = evidence.paper["table1"][row.key]
    cells: dict[str, Any] = {
        "row": row,
        "paper": published["accuracy"],
        "paper_interval": _of_images(published["accuracy"], evidence.paper["images"]),
        "paper_f1": published.get("f1"),
    }
    if row.records and row.part == "convnext" and not row.key.endswith("argmax"):
        cells["f1"] = row.f1
    if row.records and row.part == "autoencoder":
        cells["settled"] = row.records[0].scores["autoencoder"]
    return cells


def _spectrum_interval(evidence: Evidence) -> intervals.Interval:
    table = evidence.baseline_predictions
    return intervals.proportion((table.p_fake > 0.5).to_numpy() == is_fake(table), groups_of(table))


def _of_images(accuracy: float, images: int) -> intervals.Interval:
    return intervals.wilson(accuracy * images, images)


def _measures(evidence: Evidence) -> list[dict[str, Any]]:
    """A row a figure of merit: the network, the spectrum baseline, the autoencoder, each with its interval."""
    models = (evidence.evaluate["convnext"], evidence.baseline, evidence.evaluate["autoencoder"])
    return [
        {"title": title, "cells": [(scores.get(name), scores["intervals"].get(name)) for scores in models]}
        for name, title in MEASURES.items()
    ]


def _comparison(evidence: Evidence) -> list[dict[str, Any]]:
    """A row a statistic: Cliff's delta, interval and Holm's p by target."""
    rows = []
    for name, title in STATISTICS.items():
        found = evidence.comparison[evidence.comparison.statistic == name].set_index("comparison")
        if len(found):
            cells = {str(target): values.to_dict() for target, values in found.iterrows()}
            rows.append({"title": title, "cells": cells})
    return rows


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
