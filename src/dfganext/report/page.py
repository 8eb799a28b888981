"""The page: every table, figure and conclusion in one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from dfganext import paths
from dfganext.data.arrays import Images
from dfganext.density.protocols import lone_point
from dfganext.errors import redact
from dfganext.evaluation import intervals
from dfganext.labels import ALL
from dfganext.report import figures, text, verdicts
from dfganext.report.evidence import Evidence, interval_at_half
from dfganext.report.table1 import compare
from dfganext.settings import STRENGTHS, Augment, Settings, describe, flatten


def draw(evidence: Evidence) -> dict[str, Path]:
    """Write the page's own figures, at print quality; return their paths and those of the stages' figures, by name."""
    settings, scores = evidence.settings, evidence.evaluate["convnext"]
    examples = augmentation_examples(evidence.train, settings.convnext.augment, settings.seed)
    drawn = {
        "samples": figures.grid(_random_images(evidence.train, settings.seed), 1.25),
        "augmentation": figures.grid(list(zip(*examples.values(), strict=True)), 1.5, list(examples)),
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
    """The page as HTML, with the figures from `draw` embedded."""
    paper, table2 = evidence.paper, evidence.paper["table2"]
    return text.template("page.html", code, autoescape=True).render(
        evidence=evidence,
        paper=paper if evidence.settings.report.paper else None,
        paper_intervals={
            key: intervals.wilson(row["accuracy"] * paper["images"], paper["images"])
            for key, row in paper["table1"].items()
        },
        paper_lone_point=lone_point(table2["dimension"], table2["bandwidth"], table2["points"]),
        settings=_shown(evidence.settings),
        counts=pd.crosstab(evidence.split.split, evidence.split.label).reindex(["train", "validation", "test"]),
        conclusions=verdicts.all_claims(evidence) if evidence.settings.report.paper else [],
        spectrum_interval=interval_at_half(evidence.baseline_predictions),
        compare=compare,
        mcnemar=compare(evidence.row("convnext_ce"), evidence.row("convnext_bce")),
        model=describe(evidence.settings),
        comparison=evidence.comparison.set_index(["statistic", "comparison"]).to_dict(orient="index"),
        sanity=evidence.sanity.groupby("depth", sort=False).similarity.agg(["mean", "count"]),
        picture={name: _embedded(path) for name, path in figure_paths.items()},
    )


def code(sentence: str) -> Markup:
    """Text as HTML, its `backticked` parts as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))  # noqa: S704 - escaped before


def augmentation_examples(images: Images, augment: Augment, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A random real and a random fake image, unchanged, with each augmentation alone, and with all: {title: (real, fake)}, uint8.

    A title gives the probability of its augmentation in training.
    """
    degradations = {name: getattr(augment, name) for name in STRENGTHS}
    paper = ("horizontal_flip", "vertical_flip", "distortion", "colour_jitter")
    none: dict[str, Any] = {name: replace(one, p=0.0) for name, one in degradations.items()}
    none |= {"rotation": 0.0, "crop": None, **dict.fromkeys(paper, 0.0)}
    off = replace(augment, **none)
    versions: dict[str, Augment | None] = {"original": None}
    for name in paper:
        alone: dict[str, Any] = {name: 1.0}
        versions[f"{name.replace('_', ' ')}\np = {getattr(augment, name):g}"] = replace(off, **alone)
    angle = augment.rotation
    versions[f"rotation, ±{angle:g}°\np = {0.5 if angle else 0:g}"] = replace(off, rotation=angle)
    for name, one in degradations.items():
        if one.p:
            versions[f"{name}, {one.range[0]:g} … {one.range[1]:g}\np = {one.p:g}"] = replace(
                off, **{name: replace(one, p=1.0)}
            )
    versions["as in training"] = augment
    rng = np.random.default_rng([seed, 2])
    real, fake = (np.array(images.pixels[rng.permutation(images.only(label))[0]]) for label in ALL)
    return {title: (_augmented(real, version), _augmented(fake, version)) for title, version in versions.items()}


def _augmented(image: np.ndarray, augment: Augment | None) -> np.ndarray:
    """The first of 100 seeded draws that changes the image; the image itself if none does."""
    if augment is None:
        return image
    from dfganext.training.augment import compose, set_seed  # imports torch, which the rest of the page does not need

    transform = compose(augment, len(image))
    for seed in range(100):
        set_seed(transform, seed)
        changed = transform(image=image)["image"]
        if not np.array_equal(changed, image):
            return changed
    return image


def _random_images(images: Images, seed: int, count: int = 8) -> list[np.ndarray]:
    """Random images of each class: for real and fake, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    return [images.pixels[rng.permutation(images.only(label))[:count]] for label in ALL]


def _shown(settings: Settings) -> dict[str, Any]:
    """The settings by name, without those of the machine."""
    found = {key: value for key, value in flatten(settings).items() if not key.startswith("machine.")}
    url = found["download.url"]
    return found | {"download.url": url and redact(url)}


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
