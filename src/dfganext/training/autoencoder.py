"""Train the autoencoder on real images only, without augmentation: Adam, mean squared error, the best epoch by validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dfganext.data.arrays import Images
from dfganext.labels import REAL
from dfganext.models import autoencoder
from dfganext.settings import Autoencoder, Machine
from dfganext.training import augment, checkpoints, compute, loop
from dfganext.training.augment import Batch
from dfganext.training.loop import History, Metrics

MODULES = (
    "labels.py",
    "models/autoencoder.py",
    "models/batches.py",
    "training/augment.py",
    "training/autoencoder.py",
    "training/compute.py",
    "training/loop.py",
)
"""Source files that decide how training goes; a checkpoint is of no use to others."""

LIBRARIES = ("numpy", "torch")


class AutoencoderTask:
    """Reconstruct real images."""

    schedule = None
    rate = "autoencoder.lr"

    def __init__(self, train: Images, validation: Images, settings: Autoencoder, seed: int, machine: Machine) -> None:
        self.rows, self.seed, self.settings = train.only(REAL), seed, settings
        self.validation_pixels = validation.pixels[validation.only(REAL)]
        self.device = compute.device(machine.device)
        self.model = autoencoder.build(seed).to(self.device).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=True)
        dataset = augment.AugmentedImages(train.pixels, train.labels, None, seed)
        self.load = augment.Loader(dataset, machine.workers, pinned=self.device.type == "cuda")
        self._losses: list[Tensor] = []

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        return augment.shuffled(self.rows, epoch, self.settings.batch_size, self.seed)

    def losses(self, batch: Batch) -> Iterator[Tensor]:
        images = batch[0].to(self.device, non_blocking=True)
        for pixels in images.split(autoencoder.at_once(self.settings.size, len(images), self.device)):
            piece = autoencoder.preprocess(pixels)
            loss = F.mse_loss(self.model(piece), piece)
            self._losses += [loss.detach()] * len(piece)  # not read here: a GPU would have to be waited for
            yield loss * (len(piece) / len(images))

    def train_metrics(self) -> Metrics:
        losses, self._losses = torch.stack(self._losses), []
        return {"loss": float(losses.double().mean())}

    def validate(self) -> Metrics:
        errors = autoencoder.reconstruction_errors(self.model, self.validation_pixels, device=self.device)
        return {"loss": float(errors.mean())}

    def rank(self, metrics: Metrics) -> tuple[float, ...]:
        return (-metrics["validation_loss"],)


def inputs_of(
    train: Images, validation: Images, settings: Autoencoder, seed: int, machine: Machine
) -> dict[str, object]:
    """All that decides how training goes, beside the code: what to key a checkpoint by, of types that JSON knows.

    Args:
        machine: without `auto`, as `compute.resolve` returns it.
    """
    decisive = {key: getattr(settings, key) for key in ("size", "epochs", "batch_size", "lr")}
    images = {name: checkpoints.digest_of(part, REAL) for name, part in (("train", train), ("validation", validation))}
    return {"autoencoder": decisive, "seed": seed, "device": machine.device, "images": images}


def train(
    train: Images,
    validation: Images,
    settings: Autoencoder,
    seed: int,
    machine: Machine,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Metrics, float | None], None] | None = None,
) -> History:
    """Train an autoencoder on the real images of `train`; see `loop.fit` for checkpoint and on_epoch."""
    compute.make_repeatable()
    task = AutoencoderTask(train, validation, settings, seed, machine)
    return loop.fit(task, settings.epochs, seed, checkpoint, on_epoch)
