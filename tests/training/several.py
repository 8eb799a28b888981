"""What test_distributed.py runs in several processes: `python several.py ASKED.json`, with the fields of `Asked`."""

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dfganext import pipeline, settings
from dfganext.errors import UserError
from dfganext.training import distributed
from dfganext.training.distributed import Group

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Asked:
    """fails: what happens in the process `rank` when epoch `epoch`, counted from 0, begins; before all epochs with -1."""

    folder: str
    processes: int = 2
    epochs: int = 3
    fails: str | None = None
    rank: int = 1
    epoch: int = 1
    lr: float = 3e-3


def command(asked: Asked) -> list[str]:
    file = Path(asked.folder) / "asked.json"
    file.write_text(json.dumps(dataclasses.asdict(asked)))
    return [sys.executable, __file__, str(file)]


def fail(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "error":
        raise UserError("artifacts/images/32 is unwell; make it anew.")
    raise ZeroDivisionError("a bug")


def train(asked: Asked, group: Group = distributed.ALONE):
    """History of training on 46 images in batches of 15, so that no share is like another and the last ones are empty."""
    from test_training import CPU, STRONG, VALIDATION, striped

    from dfganext.training import augment, classifier

    chosen = dataclasses.replace(
        settings.load_settings(ROOT / "params.yaml").convnext,
        architecture="test_convnext",
        size=32,
        epochs=asked.epochs,
        batch_size=15,
        lr=asked.lr,
        lr_step=2,
        precision="float32",
        augment=STRONG,
    )
    shuffled = augment.shuffled

    def failing(rows, epoch, *others):
        if asked.fails and (epoch, group.rank) == (asked.epoch, asked.rank):
            fail(asked.fails)
        return shuffled(rows, epoch, *others)

    def on_epoch(row, speed):
        print(json.dumps({"epoch": row["epoch"], "again": speed is None, "rank": group.rank, "pid": os.getpid()}))
        sys.stdout.flush()

    augment.shuffled = failing
    try:
        own = (Path(asked.folder) / "checkpoint.pt", on_epoch) if group.first else (None, None)
        return classifier.train(striped(46, 0), VALIDATION, chosen, "ce", 5, CPU, *own, group)[0]
    finally:
        augment.shuffled = shuffled


def body(asked: Asked, group: Group) -> None:
    if asked.fails and (asked.epoch, asked.rank) == (-1, group.rank):
        fail(asked.fails)
    group.check_same({"epochs": asked.epochs})
    if not asked.epochs:
        return
    history = train(asked, group)
    if group.first:
        import torch

        torch.save(dataclasses.asdict(history), Path(asked.folder) / "history.pt")


def main() -> None:
    asked = Asked(**json.loads(Path(sys.argv[1]).read_text()))
    distributed.run(partial(body, asked), asked.processes, "cpu", command(asked))


if __name__ == "__main__":
    pipeline.run(main)
