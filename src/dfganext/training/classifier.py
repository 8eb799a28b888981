"""Train the classifier: AdamW and a stepwise falling rate, cross entropy or binary cross entropy, the best epoch by validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfganext.data.arrays import Images
from dfganext.evaluation import metrics
from dfganext.models import classifier
from dfganext.models.classifier import ClassifierConfig
from dfganext.settings import Convnext, Machine
from dfganext.training import augment, compute, loop
from dfganext.training.augment import Batch
from dfganext.training.loop import History, Metrics


class ClassifierTask:
    """Real against fake, from all training images."""

    def __init__(
        self, train: Images, validation: Images, settings: Convnext, loss: str, seed: int, machine: Machine
    ) -> None:
        self.train_images, self.validation_images, self.settings = train, validation, settings
        self.seed, self.workers = seed, machine.workers
        self.device = compute.device(machine.device)
        self.precision = compute.precision(settings.precision, self.device)
        model, self.config = classifier.build(settings.architecture, loss, settings.size, settings.weights, seed)
        self.model: nn.Module = model.to(self.device).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, settings.lr_step, settings.lr_gamma)
        self.dataset = augment.AugmentedImages(train.pixels, train.labels, settings.augment, seed)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        return augment.shuffled(np.arange(len(self.train_images.labels)), epoch, self.settings.batch_size, self.seed)

    def load(self, batches: list[list[tuple[int, int]]]) -> Iterable[Batch]:
        return augment.loader(self.dataset, batches, self.workers)

    def loss(self, batch: Batch) -> Tensor:
        images, labels = (part.to(self.device) for part in batch)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            outputs = self.model(classifier.preprocess(images, self.config))
        outputs = outputs.float()
        self._seen.append((classifier.fake_logits(outputs).detach().cpu(), labels.cpu()))
        return classification_loss(outputs, labels)

    def train_metrics(self) -> Metrics:
        logits, labels = (torch.cat(parts).numpy() for parts in zip(*self._seen, strict=True))
        self._seen = []
        return describe(labels, logits.astype(float))

    def validate(self) -> Metrics:
        images = self.validation_images
        logits = classifier.predict_logits(
            self.model, self.config, images.pixels, self.settings.batch_size, self.device
        )
        return describe(images.labels, logits)

    def rank(self, metrics: Metrics) -> tuple[float, ...]:
        """By accuracy; of equals, the one with the lower loss."""
        return metrics["validation_accuracy"], -metrics["validation_loss"]


def classification_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of (N, 2) logits, or binary cross entropy of (N, 1) logits, against N labels; in nats."""
    if outputs.shape[1] == 2:
        return F.cross_entropy(outputs, labels)
    return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())


def describe(labels: np.ndarray, logits: np.ndarray) -> Metrics:
    """Loss, accuracy, precision, recall and F1 of an epoch, fake where logit > 0. The same loss for both kinds of head."""
    scores = metrics.at_threshold(labels, logits, 0.0)
    loss = float(np.mean(np.logaddexp(0, np.where(labels == 1, -logits, logits))))
    return {"loss": loss} | {name: scores[name] for name in ("accuracy", "precision", "recall", "f1")}


def train(
    train: Images,
    validation: Images,
    settings: Convnext,
    loss: str,
    seed: int,
    machine: Machine,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Metrics, float | None], None] | None = None,
) -> tuple[History, ClassifierConfig]:
    """Train a classifier; see `loop.fit` for checkpoint and on_epoch.

    Returns:
        The history with the best epoch's weights, and what it takes to apply them.
    """
    compute.make_repeatable()
    task = ClassifierTask(train, validation, settings, loss, seed, machine)
    return loop.fit(task, settings.epochs, seed, checkpoint, on_epoch), task.config
