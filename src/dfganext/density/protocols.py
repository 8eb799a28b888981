"""Density of latent vectors under three protocols: the paper's, the same by scikit-learn's tree, and held-out images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity

from dfganext.data.arrays import Images
from dfganext.density.kde import log_density
from dfganext.evaluation import intervals
from dfganext.labels import NAMES, REAL

TREE_QUERIES = 50
"""Vectors of each class that scikit-learn's tree scores: with the paper's 10,000 points each can take 0.2 s."""


def score(train_real: np.ndarray, heldout_real: np.ndarray, heldout_fake: np.ndarray, bandwidth: float) -> pd.DataFrame:
    """Log densities of an estimate fitted to the latents of real training images.

    Args:
        train_real, heldout_real, heldout_fake: latent vectors, (n, d).
        bandwidth: of the Gaussian kernel, in the units of the vectors.

    Returns:
        Columns protocol, label, row (in the array of that label), log_density (nats).

        - "paper" scores real images that the estimate was fitted to: a constant of (d, h, n), not a property of the images.
        - "tree" holds the values of scikit-learn's KernelDensity with its defaults, which the paper evidently used, for at most
          TREE_QUERIES evenly spaced rows of "paper". They are wrong in high dimension.
        - "heldout" scores only images that the estimate was not fitted to.
    """
    real = log_density(train_real, heldout_real, bandwidth)
    fake = log_density(train_real, heldout_fake, bandwidth)
    fitted = log_density(train_real, train_real, bandwidth)
    parts = [
        _rows("paper", "real", np.arange(len(fitted)), fitted),
        _rows("paper", "fake", np.arange(len(fake)), fake),
        _rows("heldout", "real", np.arange(len(real)), real),
        _rows("heldout", "fake", np.arange(len(fake)), fake),
    ]
    tree = KernelDensity(bandwidth=bandwidth).fit(train_real)
    for label, vectors in (("real", train_real), ("fake", heldout_fake)):
        count = min(len(vectors), TREE_QUERIES)
        rows = np.arange(count) * len(vectors) // max(1, count)
        parts.append(_rows("tree", label, rows, tree.score_samples(vectors[rows])))
    return pd.concat(parts, ignore_index=True)


def identify(scores: pd.DataFrame, train: Images, test: Images) -> pd.DataFrame:
    """Scores from `score` with each image's path and near-duplicate group as additional columns.

    Args:
        train, test: the images whose latents were scored; the estimate was fitted to the real images of train.
    """
    parts = []
    for (protocol, label), rows in scores.groupby(["protocol", "label"]):
        images = train if label == NAMES[REAL] and protocol != "heldout" else test
        numbers = images.only(NAMES.index(label))[rows.row]
        parts.append(rows.assign(path=np.array(images.paths)[numbers], group=images.groups[numbers]))
    return pd.concat(parts).sort_index()


def lone_point(dimension: int, bandwidth: float, points: int) -> float:
    """Log density at a fitted point far from all others: -(d/2) log(2 pi h^2) - log n, in nats."""
    return float(-0.5 * dimension * np.log(2 * np.pi * bandwidth**2) - np.log(points))


def summarise(scores: pd.DataFrame, points: int, dimension: int, bandwidth: float) -> dict[str, Any]:
    """Summary of the scores from `score`, in nats.

    Args:
        scores: optionally with a column group, the near-duplicate group of each image.
        points, dimension: number and dimension of the vectors that the estimate was fitted to.

    Returns:
        points, dimension, bandwidth, and for each protocol {"real": {"mean", "std"}, "fake": {"mean", "std"}}. "paper" also has
        lone_point; "heldout" roc_auc of "the lower the density, the more likely fake", roc_auc_interval (95 %), and higher, the
        class with the higher mean; "tree" largest_error, the largest absolute difference from the exact values of its images.
    """
    summary: dict[str, Any] = {
        str(protocol): {
            str(label): {"mean": float(values.mean()), "std": float(values.std(ddof=0))}
            for label, values in group.groupby("label").log_density
        }
        for protocol, group in scores.groupby("protocol")
    }
    summary["paper"]["lone_point"] = lone_point(dimension, bandwidth, points)

    heldout = scores[scores.protocol == "heldout"]
    groups = heldout.group.to_numpy() if "group" in heldout else None
    fake, sparseness = (heldout.label == "fake").to_numpy(int), -heldout.log_density.to_numpy()
    summary["heldout"] |= {
        "roc_auc": float(roc_auc_score(fake, sparseness)),
        "roc_auc_interval": intervals.roc_auc(fake, sparseness, groups),
        "higher": "fake" if summary["heldout"]["fake"]["mean"] > summary["heldout"]["real"]["mean"] else "real",
    }

    both = scores[scores.protocol == "tree"].merge(scores[scores.protocol == "paper"], on=["label", "row"])
    largest_error = float((both.log_density_x - both.log_density_y).abs().max())
    summary["tree"] |= {"largest_error": largest_error, "images": len(both)}
    return summary | {"points": points, "dimension": dimension, "bandwidth": bandwidth}


def _rows(protocol: str, label: str, rows: np.ndarray, log_densities: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"protocol": protocol, "label": label, "row": rows, "log_density": log_densities})
