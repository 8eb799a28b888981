"""Every picture with axes or captions. Drawn on bare Figure objects, so no display and no global state is touched."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from dfganext.labels import NAMES

REAL_COLOUR, FAKE_COLOUR = "#0072B2", "#D55E00"  # Okabe and Ito: told apart with any colour vision


def save(figure: Figure, path: Path) -> None:
    """PNG at print quality, the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata={"Software": None})


def gradcam(pixels: np.ndarray, maps: np.ndarray, captions: list[str], title: str, top: float) -> Figure:
    """Images above their Grad-CAM overlays, with a caption each and one colour bar.

    All maps share one scale, so that how intense a map is can be seen, also between figures with the same `top`.

    Args:
        pixels: uint8, (N, size, size, 3).
        maps: (N, h, w), raw.
        captions: N texts.
        top: the raw value shown as full red.
    """
    from dfganext.explain.gradcam import overlay  # imports for seconds what the other figures do not need

    columns = min(8, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(1.35 * columns + 1.1, 2.95 * rows + 0.5), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (image, raw, caption) in enumerate(zip(pixels, maps, captions, strict=True)):
        row, column = divmod(number, columns)
        axes[2 * row, column].imshow(image)
        axes[2 * row, column].set_title(caption, fontsize=8)
        axes[2 * row + 1, column].imshow(overlay(image, raw, top))
    bar = figure.colorbar(ScalarMappable(Normalize(0, top), mpl.colormaps["jet"]), ax=axes, fraction=0.03, pad=0.01)
    bar.set_label("Grad-CAM, raw", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def evaluation(roc: pd.DataFrame, precision_recall: pd.DataFrame, predictions: pd.DataFrame, model: str) -> Figure:
    """ROC curve, precision-recall curve and confusion matrix side by side.

    Args:
        roc, precision_recall: as `evaluation.metrics` makes them.
        predictions: columns label and predicted, "real" or "fake", a row a test image.
        model: its name, for the title.
    """
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(roc.false_positive_rate, roc.true_positive_rate, color=FAKE_COLOUR)
    left.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", box_aspect=1)
    middle.plot(precision_recall.recall, precision_recall.precision, color=FAKE_COLOUR, drawstyle="steps-post")
    middle.set(
        xlabel="recall",
        ylabel="precision",
        title="Precision and recall",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        box_aspect=1,
    )
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
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    low, high = min(real.min(), fake.min()), max(real.max(), fake.max())
    bins = np.linspace(low, high if high > low else low + 1, 31).tolist()
    axis.hist(real, bins, color=REAL_COLOUR, alpha=0.6, label=f"real, held out ({len(real)})")
    axis.hist(fake, bins, color=FAKE_COLOUR, alpha=0.6, label=f"fake, held out ({len(fake)})")
    axis.set(xlabel="log density, nats", ylabel="images", title=title)
    axis.legend()
    return figure
