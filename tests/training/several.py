"""Training in several processes, for test_distributed.py. `python several.py RUN.json` trains with the fields of `Run`."""

import dataclasses
import json
import multiprocessing
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
class Run:
    """failure: what happens in the process `rank` when the epoch `epoch`, counted from 0, begins; with -1, before all epochs.
    teacher: file with the weights of a test_efficientnet to imitate."""

    folder: str
    processes: int = 2
    epochs: int = 3
    failure: str | None = None
    rank: int = 1
    epoch: int = 1
    lr: float = 3e-3
    teacher: str | None = None


def command(run: Run) -> list[str]:
    file = Path(run.folder) / "run.json"
    file.write_text(json.dumps(dataclasses.asdict(run)))
    return [sys.executable, __file__, str(file)]


def fail(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "error":
        raise UserError("artifacts/images/32 is damaged; make it again.")
    raise ZeroDivisionError("a bug")


def train(run: Run, group: Group = distributed.SINGLE_PROCESS):
    """History of training on 46 images in batches of 15: shards differ in size, and those of the last batch may be empty."""
    from test_training import CPU, STRONG, VALIDATION, striped

    from dfganext.training import classifier
    from dfganext.training.augment import EpochLoader

    convnext = dataclasses.replace(
        settings.load_settings(ROOT / "params.yaml").convnext,
        architecture="test_convnext",
        size=32,
        epochs=run.epochs,
        batch_size=15,
        lr=run.lr,
        lr_step=2,
        precision="float32",
        augment=STRONG,
        teacher=settings.Teacher("test_efficientnet" if run.teacher else None, run.teacher, 1.0),
    )
    load_epoch = EpochLoader.epoch

    def failing(loader, epoch):
        if run.failure and (epoch, group.rank) == (run.epoch, run.rank):
            fail(run.failure)
        return load_epoch(loader, epoch)

    def on_epoch(row, speed):
        print(json.dumps({"epoch": row["epoch"], "again": speed is None, "rank": group.rank, "pid": os.getpid()}))
        sys.stdout.flush()

    EpochLoader.epoch = failing
    try:
        options = (Path(run.folder) / "checkpoint.pt", on_epoch) if group.is_main else (None, None)
        return classifier.train(striped(46, 0), VALIDATION, convnext, "ce", 5, CPU, *options, group)[0]
    finally:
        EpochLoader.epoch = load_epoch


def printing_body(run: Run, group: Group) -> None:
    """`body` in a process of the fork server; what it prints goes to a file in the run's folder."""
    from processes import print_to

    print_to(f"{run.folder}/printed {group.rank}.log")
    body(run, group)


def body(run: Run, group: Group) -> None:
    if run.failure and (run.epoch, run.rank) == (-1, group.rank):
        fail(run.failure)
    default = multiprocessing.get_all_start_methods()[0]
    assert multiprocessing.get_start_method() == default, "the start method of data loaders"
    group.check_same({"epochs": run.epochs})
    if not run.epochs:
        return
    history = train(run, group)
    if group.is_main:
        import torch

        torch.save(dataclasses.asdict(history), Path(run.folder) / "history.pt")


def main() -> None:
    run = Run(**json.loads(Path(sys.argv[1]).read_text()))
    distributed.run(partial(body, run), run.processes, "cpu")


if __name__ == "__main__":
    pipeline.run(main)
