"""Train one model with several processes. Each computes a shard of every batch; torch.distributed averages the gradients.

With `convnext.processes` above 1, a stage starts that many processes on this machine. To use several machines, each with a copy
of the repository and of its inputs, start the stage with torchrun instead:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m stages.train_convnext

The number of processes changes rounding, but nothing else: `batch_size` is the size of a global batch, and its augmented images
are decided by the seed. Only the main process reads and writes checkpoints, logs and saves.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.multiprocessing import ProcessContext, ProcessExitedException, ProcessRaisedException, start_processes
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from dfganext.errors import UserError
from dfganext.training import compute

GRACE_PERIOD = 10.0
"""Seconds that processes have to close their tracking run after another one failed, and again after SIGTERM."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Group:
    """The processes that train one model, seen from the process `rank`, counted from 0.

    world_size is the number of processes, local_world_size the number on this machine. With one process nothing is exchanged.
    """

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This rank's part of `count` items. Sizes differ by one at most and may be 0."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def seed(self, seed: int, epoch: int) -> int:
        """Seed of random operations inside the model in an epoch, different on each rank because their images differ."""
        if self.is_main:
            return seed + epoch
        return int(np.random.SeedSequence([seed, epoch, self.rank]).generate_state(1)[0])

    def replicate(self, model: nn.Module) -> nn.Module:
        """Wrap `model` so that gradients are averaged over ranks. All ranks start with the parameters of the main process.

        Batch normalisation uses the statistics of the global batch.

        Raises:
            UserError: `model` has batch normalisation and runs on CPUs; PyTorch synchronises it on CUDA devices only.
        """
        if self.world_size == 1:
            return model
        if any(isinstance(part, _BatchNorm) for part in model.modules()):
            if distributed.get_backend() != "nccl":
                raise UserError(
                    "convnext.processes: batch normalisation across processes needs CUDA devices; set it to 1, or "
                    "convnext.architecture to a network with layer normalisation, such as convnext_tiny."
                )
            from timm.layers import convert_sync_batchnorm  # PyTorch's own would drop the activations in timm's layers

            convert_sync_batchnorm(model)
        return DistributedDataParallel(model)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over ranks of arrays with the same shape. The result has the same bytes on all ranks."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, device=_backend_device())
        distributed.all_reduce(total)
        return total.cpu().numpy()

    def broadcast(self, content: bytes) -> bytes:
        """The main process's `content`, on all ranks."""
        if self.world_size == 1:
            return content
        size = torch.tensor([len(content)], device=_backend_device())
        distributed.broadcast(size, 0)
        buffer = bytearray(content) if self.is_main else bytearray(int(size))
        if not buffer:
            return b""
        received = torch.frombuffer(buffer, dtype=torch.uint8).to(_backend_device())
        distributed.broadcast(received, 0)
        return received.cpu().numpy().tobytes()

    def check_same(self, inputs: Mapping[str, object]) -> None:
        """Raise a UserError if this rank's `inputs`, which are JSON values, differ from those of the main process."""
        own = json.dumps(inputs, sort_keys=True).encode()
        if self.broadcast(own) != own:
            raise UserError(
                f"The settings or inputs of process {self.rank + 1} of {self.world_size} differ from those of the first: bring "
                "params.yaml, artifacts/images and weights files to the same state on all machines, and set convnext.precision "
                "to float32 if some of their processors lack bfloat16."
            )


SINGLE_PROCESS = Group()


def run(body: Callable[[Group], None], processes: int, device: str) -> None:
    """Call `body` in each process of a group, and return when all calls have returned.

    If torchrun started this process, it joins the group of torchrun. Otherwise, `processes` processes are started on this
    machine; with one process, `body` is called here and nothing is started.

    Args:
        body: receives the group; must be picklable. It writes files in the main process only.
        processes: `convnext.processes`; under torchrun, the number that torchrun started, or 1.
        device: `machine.device`.

    Raises:
        UserError: there are too few CUDA devices, `processes` contradicts torchrun, or a process failed or was killed.
    """
    if all(name in os.environ for name in _TORCHRUN):
        _run_under_torchrun(body, processes, device)
    elif processes > 1:
        _check_devices(processes, device)
        _start(body, processes, device)
    else:
        body(SINGLE_PROCESS)


def _run_under_torchrun(body: Callable[[Group], None], processes: int, device: str) -> None:
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    group = Group(rank, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)))
    if processes not in (1, world_size):
        raise UserError(
            f"convnext.processes is {processes}, but torchrun started {world_size}; set it to {world_size}, or to 1 to leave "
            "the number to torchrun."
        )
    _check_devices(group.local_world_size, device)
    if world_size == 1:
        body(SINGLE_PROCESS)
    else:
        _join(body, group, local_rank, device, "env://", timeout=None)


def _join(
    body: Callable[[Group], None],
    group: Group,
    local_rank: int,
    device: str,
    init_method: str,
    timeout: timedelta | None,
) -> None:
    """Connect to the other processes and call `body`."""
    cuda = compute.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method,
        timeout=timeout,
        world_size=group.world_size,
        rank=group.rank,
        device_id=torch.device("cuda", local_rank) if cuda else None,
    )
    body(group)
    distributed.destroy_process_group()  # not after a failure: it would wait for processes that have ended


def _backend_device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def _check_devices(local_world_size: int, device: str) -> None:
    if compute.device(device).type == "cuda" and local_world_size > torch.cuda.device_count():
        raise UserError(
            f"convnext.processes: {local_world_size} processes on this machine need as many CUDA devices, and PyTorch sees "
            f"{torch.cuda.device_count()}; lower it, or set machine.device to cpu."
        )


def _start(body: Callable[[Group], None], processes: int, device: str) -> None:
    threads = max(1, torch.get_num_threads() // processes)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # the UserError says what happened
    with tempfile.TemporaryDirectory(prefix="dfganext-") as folder:
        with _inherited_by_workers(folder):
            context = start_processes(_work, (body, processes, device, threads, Path(folder)), processes, join=False)
        try:
            while not context.join(grace_period=GRACE_PERIOD):
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            raise UserError(_explain(error, context, Path(folder))) from None
        finally:
            _stop(context)


@contextmanager
def _inherited_by_workers(folder: str) -> Iterator[None]:
    """What processes inherit that are started in the block.

    They ignore Ctrl-C: it reaches this process too, which then stops them once. And PyTorch's files with their tracebacks,
    which this process unpickles, are in `folder`, where no other user can write.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = None
        signal.signal(signal.SIGINT, handler)


def _work(rank: int, body: Callable[[Group], None], world_size: int, device: str, threads: int, folder: Path) -> None:
    """Run one process of the group; it meets the others in `folder` and writes a UserError's message there."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a tracking run is closed
    multiprocessing.set_start_method(None, force=True)  # data loaders use the platform's default, not spawn
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    try:
        # no process waits in vain, because all are stopped if one fails; but the main process may wait long for a checkpoint
        # that another run is using
        _join(body, Group(rank, world_size, world_size), rank, device, f"file://{folder}/rendezvous", timedelta(days=7))
    except UserError as error:
        _message_file(folder, rank).write_text(str(error), encoding="utf-8")
        sys.exit(1)


def _stop_with_parent() -> None:
    """Send SIGTERM to this process when its parent has ended; PyTorch does so on Linux only."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(context: ProcessContext) -> None:
    """End the processes that still run: by SIGTERM and, after GRACE_PERIOD, by SIGKILL."""
    for process in context.processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_PERIOD
    try:
        for process in context.processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def _message_file(folder: Path, rank: int) -> Path:
    return folder / f"user-error-{rank}"


def _explain(error: ProcessExitedException | ProcessRaisedException, context: ProcessContext, folder: Path) -> str:
    """The message for the failure of a process, which made the others fail: their connections to it closed."""
    world_size = len(context.processes)
    messages = [file for rank in range(world_size) if (file := _message_file(folder, rank)).is_file()]
    if messages:
        return min(messages, key=lambda file: file.stat().st_mtime_ns).read_text(encoding="utf-8")
    if isinstance(error, ProcessExitedException) and error.signal_name:
        why = f"was killed by {error.signal_name}"
        if error.signal_name == "SIGKILL":
            why += ", as happens if memory runs out"
    elif isinstance(error, ProcessExitedException):
        why = f"ended with exit code {error.exit_code}"
    else:
        print(error.msg.strip(), file=sys.stderr)  # with the traceback
        why = f"failed ({textwrap.shorten(error.msg.strip().splitlines()[-1], 240)})"
    return (
        f"Training stopped, because process {error.error_index + 1} of {world_size} {why}; `dvc repro` resumes it after the "
        "last complete epoch."
    )
