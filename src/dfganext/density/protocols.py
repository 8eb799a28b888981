"""Density of latent vectors under two protocols: the paper's, and one that says something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from dfganext.density.kde import log_density


def score(train_real: np.ndarray, heldout_real: np.ndarray, heldout_fake: np.ndarray, bandwidth: float) -> pd.DataFrame:
    """Log densities of an estimate fitted to the latents of real training images.

    Args:
        train_real, heldout_real, heldout_fake: latent vectors, (n, d).

    Returns:
        Columns protocol, label, row (in the array it belongs to), log_density (nats). Protocol "paper" scores real images on
        the points the estimate was fitted to, which gives a constant of (d, h, n) and not a property of the images;
        "heldout" scores only images that it has not seen.
    """
    real = log_density(train_real, heldout_real, bandwidth)
    fake = log_density(train_real, heldout_fake, bandwidth)
    fitted = log_density(train_real, train_real, bandwidth)
    parts = [("paper", "real", fitted), ("paper", "fake", fake), ("heldout", "real", real), ("heldout", "fake", fake)]
    return pd.concat(
        [
            pd.DataFrame({"protocol": protocol, "label": label, "row": np.arange(len(values)), "log_density": values})
            for protocol, label, values in parts
        ],
        ignore_index=True,
    )


def summarise(scores: pd.DataFrame, points: int, dimension: int, bandwidth: float) -> dict[str, Any]:
    """Mean and standard deviation (nats) by protocol and class; for "paper" the value of a lone fitted point as well.

    A fitted point far from all others has the log density -(d/2) log(2 pi h^2) - log n. ROC-AUC is that of "the lower the
    density, the more likely fake", on held-out images.
    """
    summary: dict[str, Any] = {
        str(protocol): {
            str(label): {"mean": float(values.mean()), "std": float(values.std(ddof=0))}
            for label, values in group.groupby("label").log_density
        }
        for protocol, group in scores.groupby("protocol")
    }
    summary["paper"]["lone_point"] = float(-0.5 * dimension * np.log(2 * np.pi * bandwidth**2) - np.log(points))
    heldout = scores[scores.protocol == "heldout"]
    summary["heldout"]["roc_auc"] = float(roc_auc_score(heldout.label == "fake", -heldout.log_density))
    return summary | {"points": points, "dimension": dimension, "bandwidth": bandwidth}
