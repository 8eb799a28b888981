"""Every picture with axes or captions. Figures are bare Figure objects, so no display and no global state is touched.

Functions take arrays and tables, and this module imports no model code: stages that draw a figure depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from dfganext.labels import ALL, NAMES

# Okabe and Ito's colours, which can be distinguished with any colour vision
REAL_COLOUR, FAKE_COLOUR, GREEN, YELLOW, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#777777"
TARGET_COLOURS = {"target fake": FAKE_COLOUR, "target real": REAL_COLOUR, "target own class": GREEN}
RANKINGS = {
    "gradcam": (FAKE_COLOUR, "by Grad-CAM"),
    "random": (GREY, "by a random map"),
    "centred": (REAL_COLOUR, "from the centre"),
}
TRANSFORMS = {
    "jpeg": "JPEG, quality",
    "webp": "WebP, quality",
    "blur": "blur, σ in pixels",
    "downscale": "downscaled and back, factor",
    "noise": "noise, σ in grey levels",
    "crop": "centre crop, share kept",
}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG at print quality; the same figure always gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata={"Software": None})


def _panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of this size, in inches, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def gradcam(pixels: np.ndarray, overlays: list[np.ndarray], captions: list[str], title: str, top: float) -> Figure:
    """Images above their Grad-CAM overlays, each with a caption, and one colour bar.

    Args:
        pixels: uint8, (N, size, size, 3).
        overlays: N of uint8 (size, size, 3), from `explain.gradcam.overlay`, all with the same `top` so that intensities can be
            compared.
        captions: N texts.
        top: the raw value shown as full red.
    """
    columns = min(8, len(pixels))
    rows = -(-len(pixels) // columns)
    figure, axes = _panels(1.35 * columns + 1.1, 2.95 * rows + 0.5, 2 * rows, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (image, overlay, caption) in enumerate(zip(pixels, overlays, captions, strict=True)):
        row, column = divmod(number, columns)
        axes[2 * row, column].imshow(image)
        axes[2 * row, column].set_title(caption, fontsize=8)
        axes[2 * row + 1, column].imshow(overlay)
    bar = figure.colorbar(ScalarMappable(Normalize(0, top), mpl.colormaps["jet"]), ax=axes, fraction=0.03, pad=0.01)
    bar.set_label("Grad-CAM, raw", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def evaluation(roc: pd.DataFrame, precision_recall: pd.DataFrame, predictions: pd.DataFrame, model: str) -> Figure:
    """ROC curve, precision-recall curve and confusion matrix side by side.

    Args:
        roc, precision_recall: from `metrics.roc_curve` and `metrics.precision_recall_curve`.
        predictions: columns label and predicted, one row per test image.
        model: its name.
    """
    figure, [[left, middle, right]] = _panels(10.5, 4.2, columns=3)
    left.plot(roc.false_positive_rate, roc.true_positive_rate, color=FAKE_COLOUR)
    left.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", box_aspect=1)
    middle.plot(precision_recall.recall, precision_recall.precision, color=FAKE_COLOUR, drawstyle="steps-post")
    middle.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    middle.set(xlim=(0, 1.02), ylim=(0, 1.02), box_aspect=1)
    counts = confusion_matrix(predictions.label, predictions.predicted, labels=NAMES)
    right.imshow(counts, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if count > counts.max() / 2 else "black"
        right.text(column, row, f"{int(count)}", ha="center", va="center", color=colour, fontsize=14)
    right.set(xticks=[0, 1], yticks=[0, 1], xticklabels=NAMES, yticklabels=NAMES)
    right.set(xlabel="predicted", ylabel="actual", title="Confusion at the threshold")
    accuracy = np.trace(counts) / counts.sum()
    figure.suptitle(f"{model}: accuracy {accuracy:.4f} on {counts.sum()} test images", fontsize=11)
    return figure


def density(real: np.ndarray, fake: np.ndarray, title: str) -> Figure:
    """Histograms of the log density of held-out real and fake images, in nats."""
    figure, [[axis]] = _panels(6, 3.6)
    bins = np.histogram_bin_edges(np.concatenate([real, fake]), 30).tolist()
    for values, name, colour in ((real, "real", REAL_COLOUR), (fake, "fake", FAKE_COLOUR)):
        axis.hist(values, bins, color=colour, alpha=0.6, label=f"{name}, held out ({len(values)})")
    axis.set(xlabel="log density, nats", ylabel="images", title=title)
    axis.legend()
    return figure


def grid(images: Sequence[Sequence[np.ndarray] | np.ndarray], size: float, titles: Sequence[str] = ()) -> Figure:
    """Images side by side, one row per class.

    Args:
        images: for each class, uint8 images (S, S, 3).
        size: width of an image, in inches.
        titles: one per column.
    """
    columns = max(map(len, images))
    figure, axes = _panels(size * columns, 2.35 * size, 2, columns)
    for label in ALL:
        for axis, image in zip(axes[label], images[label], strict=False):
            axis.imshow(image)
        for axis in axes[label]:
            axis.set(xticks=[], yticks=[], frame_on=False)
        axes[label, 0].set_ylabel(NAMES[label], fontsize=11)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def curves(table: pd.DataFrame, test: dict[str, Any]) -> Figure:
    """Accuracy, precision, recall and F1 by epoch, and of the best epoch on test images.

    Args:
        table: columns epoch, train_..., validation_..., as written by training.
        test: metrics of the best epoch on test images.
    """
    figure, axes = _panels(9, 5.6, 2, 2, sharex=True)
    # as training chooses it: the highest validation accuracy; among equals the lowest loss, then the first
    ordered = table.sort_values(["validation_accuracy", "validation_loss", "epoch"], ascending=[False, True, True])
    best = int(ordered.epoch.iloc[0])
    for axis, name in zip(axes.flat, ("accuracy", "precision", "recall", "f1"), strict=True):
        axis.plot(table.epoch, table[f"train_{name}"], ".:", color=GREY, label="training, augmented")
        axis.plot(table.epoch, table[f"validation_{name}"], "o-", color=REAL_COLOUR, label="validation")
        axis.axvline(best, color=GREY, linewidth=0.8)
        axis.plot(best, test[name], "*", color=FAKE_COLOUR, markersize=13, label="test, best epoch")
        axis.set(title="F1" if name == "f1" else name, ylim=(-0.02, 1.04))
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    return figure


def reliability(table: pd.DataFrame, before: dict[str, float], after: dict[str, float], temperature: float) -> Figure:
    """Reliability before and after temperature scaling: share of fakes by p_fake; a marker's area shows its bin's images."""
    figure, axes = _panels(8.4, 4.3, columns=2, sharey=True)
    parts = [(1.0, "before: temperature 1", before), (temperature, f"after: temperature {temperature:.3g}", after)]
    for axis, (one, title, scores) in zip(axes.flat, parts, strict=True):
        rows = table[np.isclose(table.temperature, one)].drop_duplicates(["low"])
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axis.plot(rows.p_fake, rows.share_fake, color=REAL_COLOUR, linewidth=1)
        area = 12 + 400 * rows.images / rows.images.sum()
        axis.scatter(rows.p_fake, rows.share_fake, s=area, color=REAL_COLOUR, alpha=0.7)
        axis.set(xlabel="p_fake, mean of the bin", box_aspect=1, xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axis.set_title(f"{title}\nECE {scores['ece']:.3f}, Brier {scores['brier']:.3f}", fontsize=10)
    figure.axes[0].set_ylabel("share of fakes")
    return figure


def robustness(table: pd.DataFrame) -> Figure:
    """Accuracy at the decision threshold and ROC AUC of degraded images, one panel per transform, with 95 % intervals."""
    figure, axes = _panels(10, 5.4, 2, 3, sharey=True)
    clean = table[table["transform"] == "none"].iloc[0]
    for axis, (name, title) in zip(axes.flat, TRANSFORMS.items(), strict=True):
        rows = table[table["transform"] == name]
        milder_first = rows.sort_values("strength", ascending=name in ("blur", "noise"))
        places = np.arange(len(rows) + 1)
        for column, label, colour, style in (
            ("accuracy", "accuracy at the decision threshold", REAL_COLOUR, "o-"),
            ("roc_auc", "ROC AUC", FAKE_COLOUR, "o--"),
        ):
            values, lows, highs = (
                np.concatenate([[clean[key]], milder_first[key]]) for key in (column, f"{column}_low", f"{column}_high")
            )
            axis.plot(places, values, style, color=colour, markersize=4, label=label)
            axis.fill_between(places, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        strengths = milder_first.strength.map("{:g}".format) + milder_first.trained_on.map({True: "*", False: ""})
        axis.set(title=title, xticks=places, xticklabels=["as is", *strengths])
        axis.set_ylim(0, 1.03)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8, loc="lower left")
    return figure


def map_statistics(table: pd.DataFrame) -> Figure:
    """Cliff's delta of fake against real images for each statistic of their maps, by target class."""
    names = list(dict.fromkeys(table.statistic))
    figure, [[axis]] = _panels(7.6, 0.55 * len(names) + 1.2)
    for offset, (target, colour) in zip((-0.22, 0, 0.22), TARGET_COLOURS.items(), strict=True):
        rows = table[table.comparison == target].set_index("statistic").reindex(names)
        places = np.arange(len(names)) + offset
        errors = np.abs(np.stack([rows.cliffs_delta - rows.low, rows.high - rows.cliffs_delta]))
        certain = (rows.p_holm < 0.05).to_numpy()
        axis.errorbar(rows.cliffs_delta, places, xerr=errors, fmt="none", ecolor=colour, elinewidth=1.4)
        for those, face in ((certain, colour), (~certain, "white")):
            axis.plot(rows.cliffs_delta[those], places[those], "o", color=colour, markerfacecolor=face)
        axis.plot([], [], "o", color=colour, label=target)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set(yticks=np.arange(len(names)), yticklabels=[name.replace("_", " ") for name in names], xlim=(-1.05, 1.05))
    axis.set_xlabel("Cliff's delta: left, lower for fake images; right, higher (filled: Holm's p < 0.05)")
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    return figure


def faithfulness(table: pd.DataFrame) -> Figure:
    """Mean probability of the predicted class as pixels are removed (deletion) or shown (insertion), by three rankings."""
    figure, axes = _panels(8.4, 3.7, columns=2, sharey=True)
    for axis, curve in zip(axes.flat, ("deletion", "insertion"), strict=True):
        for ranking, (colour, label) in RANKINGS.items():
            rows = table[(table.curve == curve) & (table.ranking == ranking)]
            axis.plot(rows.fraction, rows.probability, color=colour, label=label)
        axis.set(title=curve, xlabel=f"share of pixels {'removed' if curve == 'deletion' else 'shown'}", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("probability of the predicted class")
    figure.axes[0].legend(fontsize=8)
    return figure


def published_density(table: pd.DataFrame) -> Figure:
    """Table II's log densities on one axis: fitted real points, and fakes by the exact sum and by scikit-learn's tree."""
    figure, [[axis]] = _panels(8.4, 3.2)
    parts = (
        ("paper", "real", REAL_COLOUR, "real, fitted points, exact"),
        ("paper", "fake", FAKE_COLOUR, "fake, exact"),
        ("tree", "fake", YELLOW, "fake, scikit-learn's tree"),
    )
    densities = [table[(table.protocol == part[0]) & (table.label == part[1])].log_density for part in parts]
    edges = np.histogram_bin_edges(np.concatenate(densities), 60)
    for place, (values, (_, _, colour, title)) in enumerate(zip(densities, parts, strict=True)):
        counts, _ = np.histogram(values, edges)
        heights, widths = counts / counts.max() * 0.85, np.diff(edges)
        style = {"color": colour, "alpha": 0.8, "label": f"{title} ({len(values)})"}
        axis.bar(edges[:-1], heights, widths, bottom=-place, align="edge", **style)
        axis.axhline(-place, color=GREY, linewidth=0.6)
    axis.set(xlabel="log density, nats", yticks=[])
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3, frameon=False)
    return figure
