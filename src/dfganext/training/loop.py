"""The training loop of both models. A run that was stopped goes on from its checkpoint and ends with the same bytes."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from dfganext.errors import UserError
from dfganext.training import checkpoints
from dfganext.training.augment import Batch, EpochLoader
from dfganext.training.distributed import SINGLE_PROCESS, Group

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

Metrics = dict[str, float]

OnEpoch = Callable[[Metrics, float | None], None]
"""Receives the metrics of each epoch and its training images per second; None for an epoch that an earlier run trained."""


class Task(Protocol):
    """What differs between the models."""

    lr_setting: str
    """Name of the setting of the learning rate, for the error message when training diverges."""

    loader: EpochLoader

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Any]]:
        """Yields micro-batch losses; each is backpropagated before the next. Their sum is the mean loss of the batch.

        With each loss comes what `train_metrics` needs of the micro-batch, without gradient.
        """

    def train_metrics(self, epoch: int, outputs: list[Any]) -> Metrics:
        """Metrics of the training images, from everything that `losses` yielded in the epoch, in order."""

    def validate(self, model: nn.Module) -> Metrics:
        """Metrics of `model` on the validation images: the loss and, for a classifier, the accuracy."""


@dataclass
class History:
    """Metrics of each epoch so far, and number (from 1; 0 for none) and weights of the best epoch."""

    epochs: list[Metrics] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def append(self, row: Metrics, model: nn.Module) -> None:
        """Add an epoch, and copy the model's weights if it is the best so far: the first of those with the highest validation
        accuracy, if there is one, then the lowest validation loss, which must be finite."""
        self.epochs.append(row)
        if not math.isfinite(row["validation_loss"]):
            return
        if self.best_epoch == 0 or _score(row) > _score(self.epochs[self.best_epoch - 1]):
            self.best_epoch = len(self.epochs)
            self.best_state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _score(row: Metrics) -> tuple[float, float]:
    return row.get("validation_accuracy", 0.0), -row["validation_loss"]


@dataclass
class TrainingState:
    """Everything that changes during training: what a checkpoint holds.

    scheduler: steps after each epoch, or with every_batch after each batch.
    average: moving average of the weights, updated after each batch. steps: batches so far.
    projections: trained with the model and not kept: those of `distillation`.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    history: History = field(default_factory=History)
    every_batch: bool = False
    average: ModelEmaV3 | None = None
    steps: int = 0
    projections: nn.Module | None = None

    @property
    def result(self) -> nn.Module:
        """The model to validate and to keep: the average, if there is one."""
        return self.model if self.average is None else self.average.module

    def step(self) -> None:
        """Update the weights from their gradients, then what is updated after each batch."""
        self.optimizer.step()
        self.steps += 1
        if self.every_batch:
            self.scheduler.step()
        if self.average is not None:
            self.average.update(self.model, self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": vars(self.history),
            "steps": self.steps,
            "projections": None if self.projections is None else self.projections.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = History(**state["history"])
        self.steps = state["steps"]
        if self.projections is not None:
            self.projections.load_state_dict(state["projections"])


def fit(
    task: Task,
    state: TrainingState,
    epochs: int,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
    group: Group = SINGLE_PROCESS,
) -> History:
    """Train until `epochs` epochs are done and keep the weights of the best one.

    Args:
        state: changed in place.
        epochs: includes the epochs of an earlier run that was stopped.
        seed: of random operations inside the model, such as dropout; set anew in each epoch, so a resumed run draws the same.
        checkpoint: written after each epoch. If the file exists, training resumes from it.
        on_epoch: called after each epoch, and once for each epoch found in the checkpoint.
        group: the processes that train together. Only the main process passes checkpoint and on_epoch.

    Returns:
        One row of metrics per epoch (epoch counted from 1, lr, train_..., validation_...) and the best epoch's weights.

    Raises:
        UserError: no epoch ended with a finite validation loss.
    """
    # the checkpoint is broadcast because machines may not share a disk
    saved = group.broadcast(checkpoint.read_bytes() if checkpoint is not None and checkpoint.is_file() else b"")
    if saved:
        state.load_state_dict(torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True))
    history = state.history
    if on_epoch is not None:
        for row in history.epochs:
            on_epoch(row, None)

    done, steps = len(history.epochs), task.loader.steps
    with tqdm(total=epochs * steps, initial=done * steps, unit="batch", disable=None if group.is_main else True) as bar:
        for epoch in range(done, epochs):
            bar.set_description(f"epoch {epoch + 1} of {epochs}")
            torch.manual_seed(group.seed(seed, epoch))
            row = {"epoch": float(epoch + 1), "lr": state.optimizer.param_groups[0]["lr"]}
            start = time.perf_counter()
            outputs = train_epoch(task, state, epoch, bar)
            images_per_second = task.loader.images / (time.perf_counter() - start)
            row |= {f"train_{name}": value for name, value in task.train_metrics(epoch, outputs).items()}
            row |= {f"validation_{name}": value for name, value in task.validate(state.result).items()}
            history.append(row, state.result)
            if not state.every_batch:
                state.scheduler.step()
            if checkpoint is not None:
                checkpoints.write(checkpoint, state.state_dict())
            if on_epoch is not None:
                on_epoch(row, images_per_second)
            if history.best_epoch == 0 and not all(weight.isfinite().all() for weight in state.model.parameters()):
                break  # weights never become finite again
    if history.best_epoch == 0:
        name = task.lr_setting
        raise UserError(f"{name}: training diverged, no epoch ended with a finite validation loss; lower {name}.")
    return history


def train_epoch(task: Task, state: TrainingState, epoch: int, bar: tqdm | None = None) -> list[Any]:
    """One pass over the training images. Returns what `task.losses` yielded beside the losses, in order."""
    state.model.train()
    outputs = []
    for batch in task.loader.epoch(epoch):
        state.optimizer.zero_grad()
        for loss, output in task.losses(batch):
            loss.backward()
            outputs.append(output)
        state.step()
        if bar is not None:
            bar.update()
    return outputs
