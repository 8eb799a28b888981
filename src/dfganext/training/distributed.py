"""One model trained by several processes: each computes its share of every batch, and torch.distributed adds the shares up.

`convnext.processes` above 1 makes a stage start itself that many times on this machine. On several machines, each with a copy
of the repository and of its inputs, torchrun starts it instead:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m stages.train_convnext

How many there are changes who computes what, and hence the rounding, but not what is computed: `batch_size` counts a batch of
all together, and which augmented images are in it follows from the seed. The first process alone reads and writes checkpoints,
logs and saves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from dfganext.errors import UserError, one_line
from dfganext.training import compute

GRACE = 10.0
"""Seconds in which processes close their runs, once another has failed or they were told to stop."""

_FOLDER = "DFGANEXT_PROCESSES"
"""Variable of processes that `run` started: the folder in which they meet, and leave word of why they failed."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Group:
    """The processes that train one model. By default there is but one, which exchanges nothing and computes as if alone.

    rank counts from 0, size is how many there are, here how many of them are on this machine.
    """

    rank: int = 0
    size: int = 1
    here: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """What falls to this process of `count` things in a row; shares differ by one at most and may be empty."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def seed(self, seed: int, epoch: int) -> int:
        """Of what is random inside the model, in an epoch: no two processes draw the same for their different images."""
        if self.first:
            return seed + epoch
        return int(np.random.SeedSequence([seed, epoch, self.rank]).generate_state(1)[0])

    def replicate(self, model: nn.Module) -> nn.Module:
        """What to call in place of `model` in training, for the gradients of its parameters to be means over processes.

        Its parameters become those of the first process. Batch normalisation in it takes its statistics from all processes.

        Raises:
            UserError: `model` normalises by batch, on a processor: PyTorch does that across processes on CUDA only.
        """
        if self.size == 1:
            return model
        if any(isinstance(part, _BatchNorm) for part in model.modules()):
            if distributed.get_backend() != "nccl":
                raise UserError(
                    "convnext.processes: batch normalisation across processes needs CUDA devices; set it to 1, or "
                    "convnext.architecture to a network with layer normalisation, such as convnext_tiny."
                )
            from timm.layers import convert_sync_batchnorm  # PyTorch's own would lose the activations in timm's layers

            convert_sync_batchnorm(model)
        return DistributedDataParallel(model)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over processes of arrays of one shape: the same bits in all of them."""
        if self.size == 1:
            return values
        total = torch.tensor(values, device=_exchange_device())
        distributed.all_reduce(total)
        return total.cpu().numpy()

    def from_first(self, content: bytes) -> bytes:
        """The first process's `content`, in all of them."""
        if self.size == 1:
            return content
        size = torch.tensor([len(content)], device=_exchange_device())
        distributed.broadcast(size, 0)
        if not int(size):
            return b""
        received = (
            torch.frombuffer(bytearray(content), dtype=torch.uint8)
            if self.first
            else torch.empty(int(size), dtype=torch.uint8)
        ).to(_exchange_device())
        distributed.broadcast(received, 0)
        return received.cpu().numpy().tobytes()

    def check_same(self, inputs: Mapping[str, object]) -> None:
        """UserError in a process whose `inputs`, of types that JSON knows, are not the first one's."""
        own = json.dumps(inputs, sort_keys=True).encode()
        if self.from_first(own) != own:
            raise UserError(
                f"The settings or inputs of process {self.rank + 1} of {self.size} are not those of the first: bring params.yaml, "
                "artifacts/images and files of weights to the same state on all machines, and set convnext.precision to float32 where "
                "not all their processors have bfloat16."
            )


ALONE = Group()


def run(body: Callable[[Group], None], processes: int, device: str, command: Sequence[str]) -> None:
    """Call `body` in each process of a group; returns when all have returned from it.

    Where torchrun started this process, join the others. Otherwise, with more than one process, start `command` so many times
    and wait: each comes here again and calls `body`.

    Torch's own launcher is not used here: it opens a port to the network behind which it unpickles what it is sent, and ends
    processes before they can close their tracking run. Processes started here meet in a file.

    Args:
        body: takes the group; whatever it writes, it writes in the first process only.
        processes: `convnext.processes`; under torchrun, their number or 1.
        device: `machine.device`.
        command: starts the program that called this.

    Raises:
        UserError: there are too few CUDA devices, `processes` contradicts torchrun, a process failed or was killed.
    """
    if _FOLDER in os.environ:
        _report_failure(lambda: _join(body, processes, device), Path(os.environ[_FOLDER]))
    elif all(name in os.environ for name in _TORCHRUN):
        _join(body, processes, device)
    elif processes > 1:
        _launch(processes, device, command)
    else:
        body(ALONE)


def _exchange_device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def _join(body: Callable[[Group], None], processes: int, device: str) -> None:
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if processes not in (1, size):
        raise UserError(
            f"convnext.processes is {processes}, but torchrun started {size}; set it to {size}, or to 1 to leave it to torchrun."
        )
    cuda = _device_type(here, device) == "cuda"
    if size == 1:
        body(ALONE)
        return
    if cuda:
        torch.cuda.set_device(local)
    folder = os.environ.get(_FOLDER)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        f"file://{folder}/meeting" if folder else "env://",
        # whoever started them here ends all if one ends; the first may have to wait long for a checkpoint in use
        timeout=timedelta(days=7) if folder else None,
        world_size=size,
        rank=rank,
        device_id=torch.device("cuda", local) if cuda else None,
    )
    body(Group(rank, size, here))
    distributed.destroy_process_group()  # not after a failure: it would wait for those that are no more


def _device_type(here: int, device: str) -> str:
    kind = compute.device(device).type
    if kind == "cuda" and here > torch.cuda.device_count():
        raise UserError(
            f"convnext.processes: {here} processes on this machine need as many CUDA devices, and PyTorch sees "
            f"{torch.cuda.device_count()}; lower it, or set machine.device to cpu."
        )
    return kind


def _report_failure(join: Callable[[], None], folder: Path) -> None:
    """Join, and instead of printing what went wrong leave it to the process that started this one."""
    _stop_with(os.getppid())
    try:
        join()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        meant = isinstance(error, UserError)
        report = {
            "time": time.time(),
            "rank": int(os.environ["RANK"]),
            "sentence": str(error) if meant else f"{type(error).__name__}: {one_line(error)}",
            "traceback": None if meant else traceback.format_exc(),
        }
        partial = folder / f"partial-{report['rank']}"
        partial.write_text(json.dumps(report), encoding="utf-8")
        partial.rename(folder / f"failure-{report['rank']}.json")
        sys.exit(1)


def _stop_with(parent: int) -> None:
    """Stop this process, as by SIGTERM, when the one that started it is gone without having said so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _launch(processes: int, device: str, command: Sequence[str]) -> None:
    _device_type(processes, device)
    threads = max(1, torch.get_num_threads() // processes)
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(threads)}
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    with tempfile.TemporaryDirectory(prefix="dfganext-") as folder:
        environment = {"GLOO_SOCKET_IFNAME": loopback[0]} if loopback else {}
        environment |= os.environ | common | {_FOLDER: folder}
        started: list[subprocess.Popen[bytes]] = []
        with _ended(started):
            for rank in range(processes):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # a process group of its own: Ctrl-C comes from here, and only once
                started.append(subprocess.Popen(command, env=environment | own, process_group=0))
            while any(process.poll() is None for process in started) and not _failed(started):
                time.sleep(0.1)
            failed = _failed(started)
            if failed:
                _wait(started, GRACE)
        if failed:
            _explain(failed, Path(folder), processes)


@contextmanager
def _ended(started: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever happens, none of these processes is left at the end; those that run are first asked to stop."""
    try:
        yield
    finally:
        running = [process for process in started if process.poll() is None]
        try:
            for process in running:
                process.terminate()
            _wait(running, GRACE)
        finally:
            for process in running:
                process.kill()
                process.wait()


def _failed(started: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    """{rank: exit code} of those that ended badly."""
    codes = {rank: process.poll() for rank, process in enumerate(started)}
    return {rank: code for rank, code in codes.items() if code}


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all have ended, or for so many seconds."""
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass


def _explain(failed: Mapping[int, int], folder: Path, size: int) -> None:
    """Raise a UserError for the failure that made the others fail.

    A process that ends breaks the connections of the others, which then fail too, and report so, but later.
    """
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("failure-*.json")]
    reports.sort(key=lambda report: (report["traceback"] is not None, report["time"]))
    if reports and reports[0]["traceback"] is None:
        raise UserError(reports[0]["sentence"])
    killed = {rank: -code for rank, code in failed.items() if code < 0}
    if killed:
        rank, number = next(iter(killed.items()))
        why = f"was killed by {signal.Signals(number).name}"
        if number == signal.SIGKILL:
            why += ", as happens where memory runs out"
    elif reports:
        print(reports[0]["traceback"], file=sys.stderr)
        rank, why = reports[0]["rank"], f"failed ({reports[0]['sentence']})"
    else:
        rank, code = next(iter(failed.items()))
        why = f"ended with exit code {code}"
    raise UserError(
        f"Training stopped, because process {rank + 1} of {size} {why}; `dvc repro` goes on after the last whole epoch."
    )
