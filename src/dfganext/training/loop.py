"""The one training loop: epochs, the best one by validation, and going on after a stop as if there had been none."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dfganext.errors import UserError
from dfganext.training import checkpoints
from dfganext.training.distributed import ALONE, Group

Metrics = dict[str, float]


class Task(Protocol):
    """What the loop needs to know of a model: what to feed it, what to minimise, and when an epoch is better."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimiser(self) -> torch.optim.Optimizer: ...

    @property
    def schedule(self) -> torch.optim.lr_scheduler.LRScheduler | None: ...

    @property
    def rate(self) -> str:
        """The setting that holds the learning rate, for the sentence that says it is too high."""
        ...

    def batches(self, epoch: int) -> list[Any]: ...

    def load(self, batches: list[Any]) -> Iterable[Any]:
        """What `losses` takes of each batch."""
        ...

    def losses(self, batch: Any) -> Iterable[Tensor]:
        """Mean loss of a training batch, with gradient, or parts of it that add up to it, each gone back from before the next.

        May remember outputs for `train_metrics`.
        """
        ...

    def train_metrics(self) -> Metrics:
        """Of the epoch just trained; forgets what `losses` remembered."""
        ...

    def validate(self) -> Metrics:
        """Of the validation images; `loss` is among them."""
        ...

    def rank(self, metrics: Metrics) -> tuple[float, ...]:
        """Sorts epochs by their validation metrics; the greatest is the best. Asked only of those with a finite loss."""
        ...


@dataclass
class History:
    """What training has come to so far; everything a checkpoint needs beside model and optimiser."""

    epochs: list[Metrics] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)


def fit(
    task: Task,
    epochs: int,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Metrics, float | None], None] | None = None,
    group: Group = ALONE,
) -> History:
    """Train for `epochs` epochs and keep the best one.

    Args:
        task: model, data and loss.
        epochs: in all, those of an earlier, stopped run included.
        seed: of what is random inside the model (drop path); set anew each epoch, so a run that goes on after a stop draws
            what an unbroken run draws.
        checkpoint: written after each epoch; if it is there, training goes on from it.
        on_epoch: called after each epoch with its metrics and its training images per second; with None in place of the
            latter, beforehand, for epochs that an earlier run trained.
        group: the processes that train together; checkpoint and on_epoch are for the first one of them only.

    Returns:
        One row of metrics an epoch (epoch counted from 1, lr, train_..., validation_...), and the state of the best.

    Raises:
        UserError: no epoch ended with a finite validation loss.
    """
    # machines may not share a disk: what the first process finds goes to all
    saved = group.from_first(checkpoint.read_bytes() if checkpoint is not None and checkpoint.is_file() else b"")
    history = _resume(task, saved) if saved else History()
    done = len(history.epochs)
    if on_epoch is not None:
        for row in history.epochs:
            on_epoch(row, None)
    steps = len(task.batches(0))
    with tqdm(total=epochs * steps, initial=done * steps, unit="batch", disable=None if group.first else True) as bar:
        for epoch in range(done, epochs):
            bar.set_description(f"epoch {epoch + 1} of {epochs}")
            torch.manual_seed(group.seed(seed, epoch))
            lr = task.optimiser.param_groups[0]["lr"]
            speed = train_epoch(task, epoch, bar)
            row = {"epoch": float(epoch + 1), "lr": lr}
            row |= {f"train_{name}": value for name, value in task.train_metrics().items()}
            row |= {f"validation_{name}": value for name, value in task.validate().items()}
            history.epochs.append(row)
            if task.schedule is not None:
                task.schedule.step()
            if math.isfinite(row["validation_loss"]) and (
                history.best_epoch == 0 or task.rank(row) > task.rank(history.epochs[history.best_epoch - 1])
            ):
                history.best_epoch = epoch + 1
                history.best_state = {
                    name: value.detach().cpu().clone() for name, value in task.model.state_dict().items()
                }
            if checkpoint is not None:
                _save(task, history, checkpoint)
            if on_epoch is not None:
                on_epoch(row, speed)
            if history.best_epoch == 0 and not _finite(task.model):
                break  # no weight returns from there
    if history.best_epoch == 0:
        raise UserError(
            f"{task.rate}: training diverged, no epoch ended with a finite validation loss; lower {task.rate}."
        )
    return history


def train_epoch(task: Task, epoch: int, bar: tqdm) -> float:
    """One pass over the training images. Returns images per second."""
    task.model.train()
    batches, start = task.batches(epoch), time.perf_counter()
    for batch in task.load(batches):
        task.optimiser.zero_grad(set_to_none=True)
        for loss in task.losses(batch):
            loss.backward()
        task.optimiser.step()
        bar.update()
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _finite(model: nn.Module) -> bool:
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


def _save(task: Task, history: History, checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoints.partial(checkpoint)
    state = {
        "model": task.model.state_dict(),
        "optimiser": task.optimiser.state_dict(),
        "schedule": task.schedule.state_dict() if task.schedule is not None else None,
        "history": {"epochs": history.epochs, "best_epoch": history.best_epoch, "best_state": history.best_state},
    }
    torch.save(state, partial)
    partial.replace(checkpoint)


def _resume(task: Task, saved: bytes) -> History:
    state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    task.model.load_state_dict(state["model"])
    task.optimiser.load_state_dict(state["optimiser"])
    if task.schedule is not None:
        task.schedule.load_state_dict(state["schedule"])
    return History(**state["history"])
