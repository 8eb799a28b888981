"""Batches of training images, shuffled and augmented by albumentations.

albumentations' forked workers would all draw the same numbers, and the same again in every epoch. Here each sample has its own
seed, derived from (seed, epoch, row), so an epoch has the same images for any number of workers.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dfganext.settings import Augment
from dfganext.training.distributed import SINGLE_PROCESS, Group

if TYPE_CHECKING:
    import albumentations


def compose(augment: Augment, size: int) -> albumentations.Compose:
    """Training augmentation: the paper's flips, rotation, distortion and colour jitter, then degradations.

    Degradations come in the order in which an image on the web meets them: scaled, blurred, cropped, then noisy and compressed.
    Each resampling draws its kernel. Wang et al. (2020, CNNDetection) train with blur and JPEG.

    Args:
        size: of the images; uint8 (size, size, 3) in, and out (crop, crop, 3) if `augment.crop` is set, else the same.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for updates otherwise
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # the loader's workers run in parallel already
    steps: list[Any] = [
        A.HorizontalFlip(p=augment.horizontal_flip),
        A.VerticalFlip(p=augment.vertical_flip),
        A.Rotate(limit=augment.rotation, border_mode=cv2.BORDER_REFLECT_101, p=0.5 if augment.rotation else 0),
        A.GridDistortion(num_steps=5, distort_limit=0.2, border_mode=cv2.BORDER_REFLECT_101, p=augment.distortion),
        A.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05, p=augment.colour_jitter),
    ]
    downscale = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    upscale = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
    low, high = augment.zoom.range
    zooms = [A.RandomScale((low - 1, high - 1), interpolation=kernel, p=1) for kernel in (*downscale, *upscale[1:])]
    rescales = [
        A.Downscale(augment.rescale.range, {"downscale": down, "upscale": up}, p=1)
        for down, up in product(downscale, upscale)
    ]
    noise = tuple(std / 255 for std in augment.noise.range)
    quality = tuple(map(round, augment.compression.range))
    crop = augment.size_of(size)
    steps += [
        A.OneOf(zooms, p=augment.zoom.p),
        A.OneOf(rescales, p=augment.rescale.p),
        A.GaussianBlur(blur_limit=0, sigma_limit=augment.blur.range, p=augment.blur.p),
        A.RandomCrop(
            crop,
            crop,
            pad_if_needed=True,
            border_mode=cv2.BORDER_REFLECT_101,
            pad_position="random",
            p=1 if crop < size or augment.zoom.p else 0,
        ),
        A.GaussNoise(noise, p=augment.noise.p),
        A.OneOf([A.ImageCompression(kind, quality, p=1) for kind in ("jpeg", "webp")], p=augment.compression.p),
    ]
    return A.Compose([step for step in steps if step.p > 0])


def set_seed(transform: albumentations.Compose, seed: int | Sequence[int]) -> None:
    """Let the next image's augmentations follow from a seed, each drawn independently of the others.

    albumentations' own `set_random_seed` gives every augmentation a generator with the same seed: then they draw the same numbers,
    and an image gets all those of a probability above one number, or none.
    """
    sequence = np.random.SeedSequence(seed)
    transform.set_random_state(np.random.default_rng(sequence), random.Random(int(sequence.generate_state(1)[0])))


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """Images and labels of a split, indexed by (epoch, row); augmented if `augment` is given."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, augment: Augment | None, seed: int) -> None:
        self.pixels, self.labels, self.seed = pixels, labels, seed
        self.transform = compose(augment, pixels.shape[1]) if augment is not None else None

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, row = key
        image = np.array(self.pixels[row])
        if self.transform is not None:
            set_seed(self.transform, [self.seed, epoch, row])
            image = self.transform(image=image)["image"]
        return torch.from_numpy(np.ascontiguousarray(image)), int(self.labels[row])


class Batch(NamedTuple):
    """This rank's shard of a global batch of `global_size` images.

    images: uint8 (N, H, W, 3).
    labels: int64 (N,).
    position: the shard's place in the order of the epoch. If it is empty, N is still 1: every rank takes part in every step.
    """

    images: Tensor
    labels: Tensor
    position: slice
    global_size: int


class EpochLoader:
    """Loads the training batches of an epoch, in worker processes that live as long as the loader.

    Args:
        rows: rows of the dataset to train on.
        batch_size: images in a global batch, of all ranks together.
        seed: decides the order of the rows in each epoch.
        workers: worker processes of this rank; 0 loads batches in the calling process.
        pin_memory: load into memory that a GPU can copy from while it computes.
        group: the processes that divide each batch.

    Attributes:
        images: images in an epoch.
        steps: batches in an epoch.
        smallest_batch: images in the last batch of an epoch, which may be smaller than the others.
    """

    def __init__(
        self,
        dataset: AugmentedImages,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        workers: int = 0,
        pin_memory: bool = False,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        self.dataset, self.rows, self.batch_size, self.seed, self.group = dataset, rows, batch_size, seed, group
        self.images, self.steps = len(rows), math.ceil(len(rows) / batch_size)
        self.smallest_batch = len(rows) % batch_size or batch_size
        self._keys: list[list[tuple[int, int]]] = []  # (epoch, row) of the images in each batch of the current epoch
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # it would else draw from PyTorch's, in every epoch or once, as there are workers or not
        )

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """Rows in each batch of an epoch, in an order decided by the seed and the epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This rank's shard of each batch of an epoch. Ends the iteration of an earlier epoch."""
        batches = self.global_batches(epoch)
        shards = [self.group.shard(len(rows)) for rows in batches]
        own = (
            rows[shard] if shard.start < shard.stop else rows[:1] for rows, shard in zip(batches, shards, strict=True)
        )
        self._keys[:] = [[(epoch, int(row)) for row in rows] for rows in own]
        start = 0
        for (images, labels), rows, shard in zip(self._loader, batches, shards, strict=True):
            yield Batch(images, labels, slice(start + shard.start, start + shard.stop), len(rows))
            start += len(rows)
