"""The page's own pictures; those of single stages are in `dfganext.report.plots`. All colours are Okabe and Ito's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfganext.data.arrays import Images
from dfganext.labels import ALL, NAMES
from dfganext.report.plots import FAKE_COLOUR, REAL_COLOUR
from dfganext.settings import Augment

GREEN, YELLOW, GREY = "#009E73", "#E69F00", "#777777"
TARGET_COLOURS = {"target fake": FAKE_COLOUR, "target real": REAL_COLOUR, "target own class": GREEN}
RANKING_COLOURS = {"gradcam": FAKE_COLOUR, "random": GREY, "centred": REAL_COLOUR}


def samples(images: Images, seed: int, count: int = 8) -> Figure:
    """Figure 1: random real and fake images, a row a class."""
    rng = np.random.default_rng(seed)
    figure = Figure(figsize=(1.25 * count, 2.9), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for label in ALL:
        rows = rng.permutation(images.only(label))[:count]
        for axis in axes[label]:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, row in zip(axes[label], rows, strict=False):
            axis.imshow(images.pixels[row])
        axes[label, 0].set_ylabel(NAMES[label], fontsize=11)
    return figure


def augmentation(images: Images, chosen: Augment, seed: int) -> Figure:
    """Figure 2: what each augmentation does to one image of each class, alone, and all together as in training."""
    off = replace(chosen, horizontal_flip=0, vertical_flip=0, rotation=0, distortion=0, colour_jitter=0)
    columns: dict[str, Augment | None] = {
        "as it is": None,
        "horizontal flip": replace(off, horizontal_flip=1),
        "vertical flip": replace(off, vertical_flip=1),
        f"rotation, ±{chosen.rotation:g}°": replace(off, rotation=chosen.rotation),
        "distortion": replace(off, distortion=1),
        "colour jitter": replace(off, colour_jitter=1),
        "as in training": chosen,
    }
    used = {
        "horizontal flip": chosen.horizontal_flip,
        "vertical flip": chosen.vertical_flip,
        f"rotation, ±{chosen.rotation:g}°": chosen.rotation and 0.5,
        "distortion": chosen.distortion,
        "colour jitter": chosen.colour_jitter,
    }
    rng = np.random.default_rng([seed, 2])
    figure = Figure(figsize=(1.5 * len(columns), 3.4), layout="constrained")
    axes = figure.subplots(2, len(columns))
    for label in ALL:
        image = np.array(images.pixels[rng.permutation(images.only(label))[0]])
        for axis, (name, augment) in zip(axes[label], columns.items(), strict=True):
            axis.imshow(image if augment is None else _augmented(image, augment))
            axis.set(xticks=[], yticks=[], frame_on=False)
            if label == 0:
                share = f"\np = {used[name]:g}" if name in used else ""
                axis.set_title(name + share, fontsize=9)
        axes[label, 0].set_ylabel(NAMES[label], fontsize=11)
    return figure


def curves(table: pd.DataFrame, test: dict[str, Any]) -> Figure:
    """Figure 4: accuracy, precision, recall and F1 by epoch on training and validation images; on test images at the end only.

    Args:
        table: columns epoch, train_..., validation_..., as training writes it.
        test: figures of the chosen epoch on test images.
    """
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    chosen = int(table.epoch[_best(table)])
    for axis, name in zip(
        figure.subplots(2, 2, sharex=True).flat, ("accuracy", "precision", "recall", "f1"), strict=True
    ):
        axis.plot(
            table.epoch, table[f"train_{name}"], color=GREY, linestyle=":", marker=".", label="training, augmented"
        )
        axis.plot(table.epoch, table[f"validation_{name}"], color=REAL_COLOUR, marker="o", label="validation")
        axis.axvline(chosen, color=GREY, linewidth=0.8)
        axis.plot(
            chosen, test[name], color=FAKE_COLOUR, marker="*", markersize=13, linestyle="", label="test, chosen epoch"
        )
        axis.set(title="F1" if name == "f1" else name, ylim=(-0.02, 1.04))
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.get_subplotspec().is_last_row():
            axis.set_xlabel("epoch")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    return figure


def reliability(table: pd.DataFrame, before: dict[str, float], after: dict[str, float], temperature: float) -> Figure:
    """Reliability before and after temperature scaling: share of fakes against p_fake, areas by the images in a bin."""
    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    parts = [(1.0, "before: temperature 1", before), (temperature, f"after: temperature {temperature:.3g}", after)]
    for axis, (one, title, scores) in zip(figure.subplots(1, 2, sharey=True), parts, strict=True):
        rows = table[np.isclose(table.temperature, one)].drop_duplicates(["low"])
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axis.plot(rows.p_fake, rows.share_fake, color=REAL_COLOUR, linewidth=1)
        axis.scatter(
            rows.p_fake, rows.share_fake, s=12 + 400 * rows.images / rows.images.sum(), color=REAL_COLOUR, alpha=0.7
        )
        axis.set(xlabel="p_fake, mean of the bin", box_aspect=1, xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axis.set_title(f"{title}\nECE {scores['ece']:.3f}, Brier {scores['brier']:.3f}", fontsize=10)
    figure.axes[0].set_ylabel("share of fakes")
    return figure


def robustness(table: pd.DataFrame) -> Figure:
    """Accuracy at the frozen threshold and ROC AUC of degraded images, a panel a transform, with 95 % intervals."""
    titles = {
        "jpeg": "JPEG, quality",
        "webp": "WebP, quality",
        "blur": "blur, σ in pixels",
        "downscale": "down to this share and back",
        "noise": "noise, σ in grey levels",
        "crop": "centre crop, share kept",
    }
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    clean = table[table["transform"] == "none"].iloc[0]
    for axis, (name, title) in zip(figure.subplots(2, 3, sharey=True).flat, titles.items(), strict=True):
        rows = table[table["transform"] == name]
        milder_first = rows.sort_values("strength", ascending=name in ("blur", "noise"))
        places = np.arange(len(rows) + 1)
        for column, colour, style in (("accuracy", REAL_COLOUR, "-"), ("roc_auc", FAKE_COLOUR, "--")):
            values, lows, highs = (
                np.concatenate([[clean[key]], milder_first[key]]) for key in (column, f"{column}_low", f"{column}_high")
            )
            label = "accuracy at the threshold" if column == "accuracy" else "ROC AUC"
            axis.plot(places, values, color=colour, linestyle=style, marker="o", markersize=4, label=label)
            axis.fill_between(places, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axis.set(title=title, xticks=places, xticklabels=["as is", *(f"{value:g}" for value in milder_first.strength)])
        axis.set_ylim(0, 1.03)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8, loc="lower left")
    return figure


def map_statistics(table: pd.DataFrame) -> Figure:
    """Cliff's delta of fake against real images for each statistic of their maps, by the class that is mapped."""
    names = list(dict.fromkeys(table.statistic))
    figure = Figure(figsize=(7.6, 0.55 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    for offset, (target, colour) in zip((-0.22, 0, 0.22), TARGET_COLOURS.items(), strict=True):
        rows = table[table.comparison == target].set_index("statistic").reindex(names)
        places = np.arange(len(names)) + offset
        errors = np.abs(np.stack([rows.cliffs_delta - rows.low, rows.high - rows.cliffs_delta]))
        certain = (rows.p_holm < 0.05).to_numpy()
        axis.errorbar(rows.cliffs_delta, places, xerr=errors, fmt="none", ecolor=colour, elinewidth=1.4)
        for chosen, face in ((certain, colour), (~certain, "white")):
            axis.plot(rows.cliffs_delta[chosen], places[chosen], "o", color=colour, markerfacecolor=face)
        axis.plot([], [], "o", color=colour, label=target.replace("target", "mapped for"))
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set(yticks=np.arange(len(names)), yticklabels=[name.replace("_", " ") for name in names], xlim=(-1.05, 1.05))
    axis.set_xlabel("Cliff's delta: left, lower for fake images; right, higher (filled: Holm's p < 0.05)")
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    return figure


def faithfulness(table: pd.DataFrame) -> Figure:
    """Mean probability of the class called as pixels are removed (deletion) or put back (insertion), by three rankings."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    for axis, curve in zip(figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), strict=True):
        for ranking, colour in RANKING_COLOURS.items():
            rows = table[(table.curve == curve) & (table.ranking == ranking)]
            label = {"gradcam": "by Grad-CAM", "random": "by a random map", "centred": "from the centre"}[ranking]
            axis.plot(rows.fraction, rows.probability, color=colour, label=label)
        axis.set(title=curve, xlabel=f"share of pixels {'removed' if curve == 'deletion' else 'shown'}", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("probability of the class called")
    figure.axes[0].legend(fontsize=8)
    return figure


def published_density(table: pd.DataFrame) -> Figure:
    """Table II's figures on one axis: fitted real points, and the fakes by the exact sum and by scikit-learn's tree."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axis = figure.subplots()
    parts: list[tuple[str, str, str, str]] = [
        ("paper", "real", REAL_COLOUR, "real, the fitted points, exact"),
        ("paper", "fake", FAKE_COLOUR, "fake, exact"),
        ("tree", "fake", YELLOW, "fake, scikit-learn's tree"),
    ]
    chosen = {
        key: table[(table.protocol == key[0]) & (table.label == key[1])].log_density for key in (p[:2] for p in parts)
    }
    everything = np.concatenate([values.to_numpy() for values in chosen.values()])
    low, high = everything.min(), everything.max()
    bins = np.linspace(low, high if high > low else low + 1, 61).tolist()
    for place, (protocol, label, colour, title) in enumerate(parts):
        values = chosen[protocol, label]
        _density_row(axis, values.to_numpy(), bins, place, colour, f"{title} ({len(values)})")
    axis.set(xlabel="log density, nats", yticks=[])
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3, frameon=False)
    return figure


def _density_row(axis: Axes, values: np.ndarray, bins: list[float], place: int, colour: str, label: str) -> None:
    counts, edges = np.histogram(values, bins)
    heights = counts / counts.max() * 0.85
    axis.bar(edges[:-1], heights, np.diff(edges), bottom=-place, align="edge", color=colour, alpha=0.8, label=label)
    axis.axhline(-place, color=GREY, linewidth=0.6)


def _best(table: pd.DataFrame) -> int:
    """Row of the epoch that training kept: the highest validation accuracy, of equals the lowest loss, of these the first."""
    return int(
        table.sort_values(["validation_accuracy", "validation_loss", "epoch"], ascending=[False, True, True]).index[0]
    )


def _augmented(image: np.ndarray, augment: Augment) -> np.ndarray:
    """The first of a hundred seeded draws that changes the image; the image itself where none does."""
    from dfganext.training.augment import compose  # imports torch

    transform = compose(augment)
    for seed in range(100):
        transform.set_random_seed(seed)
        changed = transform(image=image)["image"]
        if not np.array_equal(changed, image):
            return changed
    return image
