"""Training images as the network sees them: augmented by albumentations, each from a seed of its own.

albumentations' forked workers would all draw the same numbers, anew every epoch. Here the seed of a sample follows from
(seed, epoch, row), so an epoch is the same whichever worker makes which image, and however many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dfganext.settings import Augment

if TYPE_CHECKING:
    import albumentations

Batch = tuple[torch.Tensor, torch.Tensor]
"""uint8 (N, H, W, 3) and int64 (N,)."""


def compose(augment: Augment) -> albumentations.Compose:
    """The paper's training augmentation: flips, rotation, distortion, colour jitter; uint8 (H, W, 3) in and out."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for news otherwise
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # the loader's workers are the parallelism
    steps: list[Any] = [
        A.HorizontalFlip(p=augment.horizontal_flip),
        A.VerticalFlip(p=augment.vertical_flip),
        A.Rotate(limit=augment.rotation, border_mode=cv2.BORDER_REFLECT_101, p=0.5 if augment.rotation else 0),
        A.GridDistortion(num_steps=5, distort_limit=0.2, border_mode=cv2.BORDER_REFLECT_101, p=augment.distortion),
        A.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05, p=augment.colour_jitter),
    ]
    return A.Compose([step for step in steps if step.p > 0])


class AugmentedImages(Dataset[tuple[torch.Tensor, int]]):
    """Rows of a split, addressed by (epoch, row), augmented if `augment` is given."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, augment: Augment | None, seed: int) -> None:
        self.pixels, self.labels, self.augment, self.seed = pixels, labels, augment, seed
        self._transform: albumentations.Compose | None = None

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, row = key
        image = np.array(self.pixels[row])
        if self.augment is not None:
            if self._transform is None:
                self._transform = compose(self.augment)
            self._transform.set_random_seed(int(np.random.SeedSequence([self.seed, epoch, row]).generate_state(1)[0]))
            image = self._transform(image=image)["image"]
        return torch.from_numpy(np.ascontiguousarray(image)), int(self.labels[row])


def shuffled(rows: np.ndarray, epoch: int, batch_size: int, seed: int) -> list[list[tuple[int, int]]]:
    """One epoch's batches of (epoch, row), in an order that follows from the seed and the epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    keys = [(epoch, int(row)) for row in order]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


class Loader:
    """Batches made ahead by worker processes, which stay from one epoch to the next: each start would cost seconds of imports.

    Args:
        dataset: addressed by (epoch, row).
        workers: processes; 0 makes batches in this one.
        pinned: in memory that a GPU can read while it computes.
    """

    def __init__(self, dataset: AugmentedImages, workers: int, pinned: bool = False) -> None:
        self._batches: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
        )

    def __call__(self, batches: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        """These batches, in order; those of an earlier call are over."""
        self._batches[:] = batches
        return iter(self._loader)
