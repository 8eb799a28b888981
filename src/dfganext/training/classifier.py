"""Train the classifier: AdamW, StepLR, cross entropy or binary cross entropy, best epoch by validation accuracy.

With a teacher, the loss includes the error of the imitation of its feature maps: see `distillation`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from dfganext import files
from dfganext.data.arrays import Images
from dfganext.evaluation import metrics
from dfganext.models import classifier
from dfganext.models.classifier import ClassifierConfig
from dfganext.settings import Convnext, Machine
from dfganext.training import checkpoints, compute, loop
from dfganext.training.augment import AugmentedImages, Batch, EpochLoader
from dfganext.training.distillation import Distillation
from dfganext.training.distributed import SINGLE_PROCESS, Group
from dfganext.training.loop import History, Metrics, OnEpoch, TrainingState


@dataclass(frozen=True)
class Shard:
    """This rank's part of a batch, without gradient: its position among the epoch's images, its logits of "fake", and the error
    of the imitation of the teacher's feature maps."""

    position: slice
    logits: Tensor
    imitation_error: Tensor


class ClassifierTask:
    """Classify images as real or fake."""

    lr_setting = "convnext.lr"

    def __init__(
        self,
        train: Images,
        validation: Images,
        settings: Convnext,
        loss: str,
        seed: int,
        machine: Machine,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        self.labels, self.validation, self.batch_size, self.group = train.labels, validation, settings.batch_size, group
        self.device = compute.device(machine.device)
        self.precision = compute.precision(settings.precision, self.device)
        self.loader = EpochLoader(
            AugmentedImages(train.pixels, train.labels, settings.augment, seed),
            np.arange(len(train.labels)),
            settings.batch_size,
            seed,
            math.ceil(machine.workers / group.local_world_size),
            pin_memory=self.device.type == "cuda",
            group=group,
        )
        crop = settings.augment.size_of(settings.size)
        model, config = classifier.build(
            settings.architecture,
            loss,
            settings.size,
            settings.weights,
            seed,
            settings.match,
            any_size=crop != settings.size,
        )
        self.config = replace(config, precision=compute.name_of(self.precision), device=self.device.type)
        self.model: nn.Module = model.to(self.device).to(memory_format=torch.channels_last)
        # each rank computes with one image at least, even where a batch has fewer images than there are ranks
        dry_run(self.model, self.config, self.precision, crop, max(self.loader.smallest_batch, group.world_size))
        self.distillation: Distillation | None = None
        if settings.teacher.architecture is not None:
            self.distillation = Distillation(self.model, settings.teacher, crop, seed)
        self.replica = group.replicate(self.model if self.distillation is None else self.distillation.student)

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Shard]]:
        """Yields the loss of this rank's shard, and the shard.

        Gradients are averaged over ranks. The weight makes their mean the gradient of the mean loss over the global batch.
        """
        images, labels = (part.to(self.device, non_blocking=True) for part in (batch.images, batch.labels))
        outputs, imitation_error = self._forward(images)
        loss = classification_loss(outputs, labels)
        if self.distillation is not None:
            loss = loss + self.distillation.strength * imitation_error
        shard_size = batch.position.stop - batch.position.start
        weight = shard_size * self.group.world_size / batch.global_size
        logits = classifier.fake_logits(outputs).detach()[:shard_size]
        yield loss * weight, Shard(batch.position, logits, imitation_error.detach())

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the head, and the error of the imitation of the teacher; 0 without one."""
        inputs = classifier.preprocess(images, self.config)
        if self.distillation is None:
            return forward(self.replica, inputs, self.precision), torch.zeros(())
        with compute.autocast(self.device, self.precision):
            outputs, maps = self.replica(inputs)
            return outputs.float(), self.distillation.error(maps, images)

    def train_metrics(self, epoch: int, outputs: list[Shard]) -> Metrics:
        """Metrics of the training images, from what was computed during the epoch."""
        labels = self.labels[np.concatenate(self.loader.global_batches(epoch))]
        logits = np.zeros(len(labels), np.float32)
        for shard in outputs:
            logits[shard.position] = shard.logits.cpu().numpy()
        # the logits of each image are zero on all ranks but one
        scores = epoch_metrics(labels, self.group.sum(logits).astype(float))
        if self.distillation is not None:
            errors = sum(float(shard.imitation_error) * len(shard.logits) for shard in outputs)
            scores["imitation_error"] = float(self.group.sum(np.array(errors))) / len(labels)
        return scores

    def validate(self, model: nn.Module) -> Metrics:
        """Metrics of the validation images, each rank predicting a shard of the batches."""
        labels, batch_size = self.validation.labels, self.batch_size
        # whole batches, so that they are those of one process
        shard = self.group.shard(math.ceil(len(labels) / batch_size))
        rows = slice(shard.start * batch_size, shard.stop * batch_size)
        logits = np.zeros(len(labels))
        logits[rows] = classifier.predict_logits(
            model, self.config, self.validation.pixels[rows], batch_size, self.device
        )
        return epoch_metrics(labels, self.group.sum(logits))


def training_state(
    model: nn.Module, settings: Convnext, steps: int, projections: nn.Module | None = None
) -> TrainingState:
    """AdamW for the parameters of `model`, with the schedule of the learning rate and the average of weights from the settings.

    Args:
        steps: batches in an epoch.
        projections: trained with the model.
    """
    parameters = [*model.parameters(), *(projections.parameters() if projections is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    average = ModelEmaV3(model, settings.average, use_warmup=True) if settings.average else None
    if settings.schedule == "one_cycle":
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, settings.epochs * steps, cycle_momentum=False
        )
        return TrainingState(model, optimizer, cycle, every_batch=True, average=average, projections=projections)
    step = torch.optim.lr_scheduler.StepLR(optimizer, settings.lr_step, settings.lr_gamma)
    return TrainingState(model, optimizer, step, average=average, projections=projections)


def dry_run(
    model: nn.Module, config: ClassifierConfig, precision: torch.dtype, crop: int, smallest_batch: int = 2
) -> None:
    """Check with blank images that `model` can predict, be explained by Grad-CAM and train. Works on a copy of it.

    Args:
        crop: width and height of the images that it trains on, in pixels.
        smallest_batch: images in the smallest training batch: batch normalisation cannot train on one image.

    Raises:
        UserError: the architecture cannot do one of these at this size, or memory runs out.
    """
    device = next(model.parameters()).device
    features: list[object] = []

    def blank(size: int) -> Tensor:
        images = torch.zeros((min(smallest_batch, 2), size, size, 3), dtype=torch.uint8, device=device)
        return classifier.preprocess(images, config)

    whole, part = blank(config.size), blank(crop)
    # dropout must not change the random numbers drawn later
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with classifier.network_errors(config.architecture, config.size):
            network = copy.deepcopy(model)
            classifier.map_layer(network).register_forward_hook(lambda layer, inputs, output: features.append(output))
            with torch.no_grad():
                forward(network.eval(), whole, precision)
        with classifier.network_errors(config.architecture, crop):
            outputs = forward(network.train(), part, precision)
            labels = torch.zeros(len(outputs), dtype=torch.int64, device=device)
            classification_loss(outputs, labels).backward()
    classifier.to_grid(features[0], model)


def forward(network: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    """Outputs of the head in float32, computed in `precision` where PyTorch considers that safe."""
    with compute.autocast(images.device, precision):
        return network(images).float()


def classification_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of (N, 2) logits, or binary cross entropy of (N, 1) logits, against N labels; in nats."""
    if outputs.shape[1] == 2:
        return F.cross_entropy(outputs, labels)
    return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())


def epoch_metrics(labels: np.ndarray, logits: np.ndarray) -> Metrics:
    """Loss, accuracy, precision, recall and F1 of N labels and logits of "fake", predicted fake if the logit is above 0.

    The loss is the same for both kinds of head: cross entropy in nats.
    """
    scores = metrics.at_threshold(labels, logits, 0.0)
    with np.errstate(invalid="ignore"):  # logits are NaN after training diverged
        loss = float(np.mean(np.logaddexp(0, np.where(labels == 1, -logits, logits))))
    return {"loss": loss} | {name: scores[name] for name in ("accuracy", "precision", "recall", "f1")}


def training_inputs(
    train: Images, validation: Images, settings: Convnext, loss: str, seed: int, machine: Machine
) -> dict[str, object]:
    """All data and settings that affect the trained weights, as JSON values: identifies a checkpoint.

    Args:
        settings, machine: as `compute.resolve` returns them, without `auto`.
    """
    values = asdict(replace(settings, processes=1))  # training may resume with another number of processes
    for section in (values, values["teacher"]):
        file = classifier.weights_file(section["weights"])
        if file and file.is_file():
            section["weights"] = files.sha256_of(file)
    images = {"train": checkpoints.hash_images(train), "validation": checkpoints.hash_images(validation)}
    return {"convnext": values, "loss": loss, "seed": seed, "device": machine.device, "images": images}


def train(
    train: Images,
    validation: Images,
    settings: Convnext,
    loss: str,
    seed: int,
    machine: Machine,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
    group: Group = SINGLE_PROCESS,
) -> tuple[History, ClassifierConfig]:
    """Train a classifier; see `loop.fit` for checkpoint, on_epoch and group.

    Returns:
        The history with the best epoch's weights, and the configuration to apply them with.
    """
    compute.make_repeatable()
    task = ClassifierTask(train, validation, settings, loss, seed, machine, group)
    projections = None if task.distillation is None else task.distillation.student.projections
    state = training_state(task.model, settings, task.loader.steps, projections)
    return loop.fit(task, state, settings.epochs, seed, checkpoint, on_epoch, group), task.config
