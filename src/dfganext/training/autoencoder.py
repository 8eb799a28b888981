"""Train the autoencoder on real images only, without augmentation: Adam, mean squared error, best epoch by validation loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfganext.data.arrays import Images
from dfganext.labels import REAL
from dfganext.models import autoencoder
from dfganext.settings import Autoencoder, Machine
from dfganext.training import checkpoints, compute, loop
from dfganext.training.augment import AugmentedImages, Batch, EpochLoader
from dfganext.training.loop import History, Metrics, OnEpoch, TrainingState


class AutoencoderTask:
    """Reconstruct real images."""

    lr_setting = "autoencoder.lr"

    def __init__(self, train: Images, validation: Images, settings: Autoencoder, seed: int, machine: Machine) -> None:
        self.size, self.device = settings.size, compute.device(machine.device)
        self.model = autoencoder.build(seed).to(self.device).to(memory_format=torch.channels_last)
        self.loader = EpochLoader(
            AugmentedImages(train.pixels, train.labels, None, seed),
            train.only(REAL),
            settings.batch_size,
            seed,
            machine.workers,
            pin_memory=self.device.type == "cuda",
        )
        self.validation_pixels = validation.pixels[validation.only(REAL)]

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yields micro-batch losses; with each comes the micro-batch's mean loss, once per image."""
        images = batch.images.to(self.device, non_blocking=True)
        for pixels in images.split(autoencoder.micro_batch_size(self.size, len(images), self.device)):
            inputs = autoencoder.preprocess(pixels)
            loss = F.mse_loss(self.model(inputs), inputs)
            yield loss * (len(inputs) / len(images)), [loss.detach()] * len(inputs)

    def train_metrics(self, epoch: int, outputs: list[list[Tensor]]) -> Metrics:
        """Mean loss per image."""
        losses = torch.stack([loss for micro_batch in outputs for loss in micro_batch])
        return {"loss": float(losses.double().mean())}

    def validate(self, model: nn.Module) -> Metrics:
        """Mean loss of the real validation images."""
        assert isinstance(model, autoencoder.Autoencoder)
        errors = autoencoder.reconstruction_errors(model, self.validation_pixels, device=self.device)
        return {"loss": float(errors.mean())}


def training_inputs(
    train: Images, validation: Images, settings: Autoencoder, seed: int, machine: Machine
) -> dict[str, object]:
    """All data and settings that affect the trained weights, as JSON values: identifies a checkpoint.

    Args:
        machine: as `compute.resolve` returns it, without `auto`.
    """
    values = {key: getattr(settings, key) for key in ("size", "epochs", "batch_size", "lr")}
    images = {"train": checkpoints.hash_images(train, REAL), "validation": checkpoints.hash_images(validation, REAL)}
    return {"autoencoder": values, "seed": seed, "device": machine.device, "images": images}


def train(
    train: Images,
    validation: Images,
    settings: Autoencoder,
    seed: int,
    machine: Machine,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train an autoencoder on the real images of `train`; see `loop.fit` for checkpoint and on_epoch."""
    compute.make_repeatable()
    task = AutoencoderTask(train, validation, settings, seed, machine)
    optimizer = torch.optim.Adam(task.model.parameters(), lr=settings.lr, fused=True)
    constant = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=1)
    state = TrainingState(task.model, optimizer, constant)
    return loop.fit(task, state, settings.epochs, seed, checkpoint, on_epoch)
