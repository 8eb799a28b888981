"""Do maps depend on the trained weights? Weight randomisation (Adebayo et al. 2018)."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from dfganext.explain.gradcam import raw_maps
from dfganext.models.classifier import ClassifierConfig

Depth = Literal["head", "all"]
DEPTHS: tuple[Depth, ...] = ("head", "all")


def after_randomising(
    model: nn.Module, config: ClassifierConfig, images: np.ndarray, maps: np.ndarray, targets: np.ndarray, seed: int
) -> pd.DataFrame:
    """`similarity` of maps before and after the weights are shuffled: one row per depth and image.

    Args:
        images: uint8, (N, size, size, 3).
        maps: (N, h, w), of the trained model.
        targets: (N,), the class that each map explains.
    """
    parts = []
    for depth in DEPTHS:
        found = similarity(maps, raw_maps(randomise(model, seed, depth), config, images, targets))
        parts.append(pd.DataFrame({"depth": depth, "image": range(len(maps)), "similarity": found}))
    return pd.concat(parts, ignore_index=True)


def randomise(model: nn.Module, seed: int, depth: Depth) -> nn.Module:
    """A copy of a timm classifier with the entries of each tensor shuffled: what was learnt is lost, mean and spread stay.

    Args:
        depth: "head" shuffles the last layer alone, "all" every weight.
    """
    other = copy.deepcopy(model.train()).eval()  # train() clears what LeViT caches from its weights
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    part = other.get_classifier() if depth == "head" else other  # type: ignore[operator]
    weights = nn.ModuleList(part if isinstance(part, tuple) else [part]).parameters()  # DeiT has two heads
    with torch.no_grad():
        for weight in weights:
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return other


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rho between the cells of each pair of maps: two (N, h, w) -> (N,); NaN where a map is constant."""
    result = np.full(len(first), np.nan)
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            result[row] = stats.spearmanr(one.ravel(), other.ravel()).statistic
    return result
