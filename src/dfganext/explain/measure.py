"""All measurements of Grad-CAM maps, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import nn

from dfganext import labels
from dfganext.data.arrays import Images
from dfganext.explain import comparison, faithfulness, sanity, statistics
from dfganext.models.classifier import ClassifierConfig
from dfganext.settings import Gradcam


def tables(
    model: nn.Module,
    config: ClassifierConfig,
    images: Images,
    maps: np.ndarray,
    predicted: np.ndarray,
    order: Sequence[np.ndarray],
    settings: Gradcam,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Measure the maps of all images. Faithfulness and sanity need many passes: they use the first images of each class.

    Args:
        maps: (2, N, h, w), from `gradcam.maps_of_both`.
        predicted: (N,), the predicted class of each image, 0 or 1.
        order: for each class, the rows of its images; the first `settings.faithfulness` of each are used.

    Returns:
        statistics (one row per image and target class), comparison, faithfulness, faithfulness_curves, sanity.
    """
    names = np.array(labels.NAMES)
    image = pd.DataFrame({"path": images.paths, "label": names[images.labels], "group": images.groups})
    described = [
        pd.concat([image.assign(target=target), statistics.describe(raw, settings.face)], axis=1)
        for target, raw in zip(labels.NAMES, maps, strict=True)
    ]
    table = pd.concat(described, ignore_index=True)

    rows = np.sort(np.concatenate([of_class[: settings.faithfulness] for of_class in order]))
    targets = predicted[rows]
    some = model, config, images.pixels[rows], maps[targets, rows], targets
    areas, curves = faithfulness.curves(*some, seed=seed)
    return {
        "statistics": table,
        "comparison": comparison.compare(table),
        "faithfulness": faithfulness.against(areas, images.groups[rows]),
        "faithfulness_curves": curves,
        "sanity": sanity.after_randomising(*some, seed=seed),
    }
