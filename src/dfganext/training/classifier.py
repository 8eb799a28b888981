"""Train the classifier: AdamW and a stepwise falling rate, cross entropy or binary cross entropy, the best epoch by validation."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfganext.data.arrays import Images
from dfganext.errors import UserError
from dfganext.evaluation import metrics
from dfganext.models import classifier
from dfganext.models.classifier import ClassifierConfig
from dfganext.settings import Convnext, Machine
from dfganext.training import augment, checkpoints, compute, loop
from dfganext.training.distributed import ALONE, Group
from dfganext.training.loop import History, Metrics

MODULES = (
    "evaluation/metrics.py",
    "labels.py",
    "models/batches.py",
    "models/classifier.py",
    "training/augment.py",
    "training/classifier.py",
    "training/compute.py",
    "training/distributed.py",
    "training/loop.py",
)
"""Source files that decide how training goes; a checkpoint is of no use to others."""

LIBRARIES = ("albumentations", "numpy", "opencv-python-headless", "timm", "torch")


class Part(NamedTuple):
    """What a process trains on of a batch of `of` images: they lie at `place` in the epoch's order.

    Where that is empty, images and labels have one row nevertheless.
    """

    images: Tensor
    labels: Tensor
    place: slice
    of: int


class ClassifierTask:
    """Real against fake, from all training images."""

    rate = "convnext.lr"

    def __init__(
        self,
        train: Images,
        validation: Images,
        settings: Convnext,
        loss: str,
        seed: int,
        machine: Machine,
        group: Group = ALONE,
    ) -> None:
        self.train_images, self.validation_images, self.settings = train, validation, settings
        self.seed, self.group = seed, group
        self.device = compute.device(machine.device)
        self.precision = compute.precision(settings.precision, self.device)
        model, config = classifier.build(
            settings.architecture, loss, settings.size, settings.weights, seed, settings.match
        )
        self.config = replace(config, precision=compute.name_of(self.precision), device=self.device.type)
        self.model: nn.Module = model.to(self.device).to(memory_format=torch.channels_last)
        fewest = max(min(map(len, self.batches(0))), group.size)  # each process computes with one image at least
        rehearse(self.model, self.config, self.precision, fewest)
        self.replica = group.replicate(self.model)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, settings.lr_step, settings.lr_gamma)
        self.dataset = augment.AugmentedImages(train.pixels, train.labels, settings.augment, seed)
        workers = math.ceil(machine.workers / group.here)
        self._loaded = augment.Loader(self.dataset, workers, pinned=self.device.type == "cuda")
        self._rows = np.empty(0, np.int64)
        self._logits = torch.empty(0)

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        return augment.shuffled(np.arange(len(self.train_images.labels)), epoch, self.settings.batch_size, self.seed)

    def load(self, batches: list[list[tuple[int, int]]]) -> Iterator[Part]:
        self._rows = np.array([row for batch in batches for _, row in batch])
        self._logits = torch.zeros(len(self._rows), device=self.device)
        keys, places, start = [], [], 0
        for batch in batches:
            share = self.group.share(len(batch))
            keys.append(batch[share] or batch[:1])  # each process must take part in each step; `loss` counts this one 0
            places.append((slice(start + share.start, start + share.stop), len(batch)))
            start += len(batch)
        for loaded, (place, of) in zip(self._loaded(keys), places, strict=True):
            yield Part(*loaded, place, of)

    def losses(self, batch: Part) -> Iterator[Tensor]:
        yield self.loss(batch)

    def loss(self, batch: Part) -> Tensor:
        images, labels = (part.to(self.device, non_blocking=True) for part in (batch.images, batch.labels))
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            outputs = self.replica(classifier.preprocess(images, self.config))
        outputs = outputs.float()
        own = batch.place.stop - batch.place.start
        self._logits[batch.place] = classifier.fake_logits(outputs).detach()[:own]
        # processes' gradients are averaged: so weighted, their mean is the gradient of the mean over the whole batch
        return classification_loss(outputs, labels) * (own * self.group.size / batch.of)

    def train_metrics(self) -> Metrics:
        logits = self.group.sum(self._logits.cpu().numpy())  # of each image one process has the logit, the others 0
        return describe(self.train_images.labels[self._rows], logits.astype(float))

    def validate(self) -> Metrics:
        images, size = self.validation_images, self.settings.batch_size
        share = self.group.share(math.ceil(len(images.labels) / size))  # of batches, so that they are the same ones
        part = slice(share.start * size, share.stop * size)
        logits = np.zeros(len(images.labels))
        logits[part] = classifier.predict_logits(self.model, self.config, images.pixels[part], size, self.device)
        return describe(images.labels, self.group.sum(logits))

    def rank(self, metrics: Metrics) -> tuple[float, ...]:
        """By accuracy; of equals, the one with the lower loss."""
        return metrics["validation_accuracy"], -metrics["validation_loss"]


def rehearse(model: nn.Module, config: ClassifierConfig, precision: torch.dtype, fewest: int = 2) -> None:
    """Have a copy of `model` judge, be mapped and train on two blank images, before time is spent on it.

    Args:
        fewest: images in the smallest batch to come; where it is one, the copy trains on one too.

    Raises:
        UserError: the architecture cannot do one of these at this size, or not with a batch of one; or memory runs out.
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # dropout must not shift what follows
        _rehearse(model, config, precision, fewest)


def _rehearse(model: nn.Module, config: ClassifierConfig, precision: torch.dtype, fewest: int) -> None:
    device = next(model.parameters()).device
    blank = np.zeros((2, config.size, config.size, 3), np.uint8)
    batch = classifier.preprocess(torch.from_numpy(blank).to(device), config)
    blaming = partial(classifier.network_errors, config.architecture, config.size)

    def outputs_of(network: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return network(images).float()

    seen: list[object] = []
    with blaming():
        copied = copy.deepcopy(model)
    hook = classifier.map_layer(copied).register_forward_hook(lambda layer, given, output: seen.append(output))
    with torch.no_grad(), blaming():
        outputs_of(copied.eval(), batch)
    hook.remove()
    classifier.as_grid(seen[-1], copied)
    with blaming():
        outputs = outputs_of(copied.train(), batch)
    loss = classification_loss(outputs, torch.zeros(2, dtype=torch.int64, device=device))
    with blaming():
        loss.backward()
    if fewest > 1:
        return
    try:
        outputs_of(copied, batch[:1])
    except ValueError as error:
        raise UserError(
            f"convnext.batch_size: it leaves a batch of one image, and {config.architecture} at {config.size} pixels cannot "
            "normalise by batch over that; choose another, such as one more or one less."
        ) from error


def classification_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of (N, 2) logits, or binary cross entropy of (N, 1) logits, against N labels; in nats."""
    if outputs.shape[1] == 2:
        return F.cross_entropy(outputs, labels)
    return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())


def describe(labels: np.ndarray, logits: np.ndarray) -> Metrics:
    """Loss, accuracy, precision, recall and F1 of an epoch, fake where logit > 0. The same loss for both kinds of head."""
    scores = metrics.at_threshold(labels, logits, 0.0)
    with np.errstate(invalid="ignore"):  # of an epoch that diverged
        loss = float(np.mean(np.logaddexp(0, np.where(labels == 1, -logits, logits))))
    return {"loss": loss} | {name: scores[name] for name in ("accuracy", "precision", "recall", "f1")}


def inputs_of(
    train: Images, validation: Images, settings: Convnext, loss: str, seed: int, machine: Machine
) -> dict[str, object]:
    """All that decides how training goes, beside the code: what to key a checkpoint by, of types that JSON knows.

    Args:
        settings, machine: without `auto`, as `compute.resolve` returns it.
    """
    decisive = asdict(replace(settings, processes=1))  # training may go on with more or fewer
    file = classifier.weights_file(settings.weights)
    if file is not None and file.is_file():
        with file.open("rb") as stream:
            decisive["weights"] = hashlib.file_digest(stream, "sha256").hexdigest()
    images = {"train": checkpoints.digest_of(train), "validation": checkpoints.digest_of(validation)}
    return {"convnext": decisive, "loss": loss, "seed": seed, "device": machine.device, "images": images}


def train(
    train: Images,
    validation: Images,
    settings: Convnext,
    loss: str,
    seed: int,
    machine: Machine,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Metrics, float | None], None] | None = None,
    group: Group = ALONE,
) -> tuple[History, ClassifierConfig]:
    """Train a classifier; see `loop.fit` for checkpoint, on_epoch and group.

    Returns:
        The history with the best epoch's weights, and what it takes to apply them.
    """
    compute.make_repeatable()
    task = ClassifierTask(train, validation, settings, loss, seed, machine, group)
    return loop.fit(task, settings.epochs, seed, checkpoint, on_epoch, group), task.config
