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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import ProcessException, start_processes
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from dfganext.errors import UserError
from dfganext.training import compute

GRACE_PERIOD = 10.0
"""Seconds that processes have to close their tracking run after another one failed, and again after SIGTERM."""

USER_ERROR = "user-error"
"""File with the message of a process that failed."""


@dataclass(frozen=True)
class Group:
    """The processes that train one model, seen from the process `rank`, counted from 0.

    world_size is the number of processes, local_world_size the number on this machine.
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

        Batch normalisation uses the statistics of the global batch; UserError on CPUs, where PyTorch cannot synchronise it.
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
        total = torch.tensor(values, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.all_reduce(total)
        return total.cpu().numpy()

    def broadcast(self, content: bytes) -> bytes:
        """The main process's `content`, on all ranks."""
        if self.world_size == 1:
            return content
        contents = [content]
        distributed.broadcast_object_list(contents, 0)
        return contents[0]

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
        body: receives the group; must be picklable.
        processes: `convnext.processes`; under torchrun, the number that torchrun started, or 1.
        device: `machine.device`.

    Raises:
        UserError: there are too few CUDA devices, `processes` contradicts torchrun, or a process failed.
    """
    if distributed.is_torchelastic_launched():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in names)
        if processes not in (1, world_size):
            raise UserError(
                f"convnext.processes is {processes}, but torchrun started {world_size}; set it to {world_size}, or to 1 to "
                "leave the number to torchrun."
            )
        _check_devices(local_world_size, device)
        _join(body, Group(rank, world_size, local_world_size), local_rank, device, "env://", timeout=None)
    elif processes > 1:
        _check_devices(processes, device)
        _start(body, processes, device)
    else:
        body(SINGLE_PROCESS)


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


def _check_devices(local_world_size: int, device: str) -> None:
    if compute.device(device).type == "cuda" and local_world_size > torch.cuda.device_count():
        raise UserError(
            f"convnext.processes: {local_world_size} processes on this machine need as many CUDA devices, and PyTorch sees "
            f"{torch.cuda.device_count()}; lower it, or set machine.device to cpu."
        )


def _start(body: Callable[[Group], None], processes: int, device: str) -> None:
    threads = max(1, torch.get_num_threads() // processes)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # the UserError says what happened
    with tempfile.TemporaryDirectory(prefix="dfganext-") as name:
        folder = Path(name)
        context = start_processes(_work, (body, processes, device, threads, folder), processes, join=False)
        try:
            while not context.join(grace_period=GRACE_PERIOD):
                pass
        except ProcessException as error:
            # after a UserError of one process, others fail too: their connections to it closed
            message = folder / USER_ERROR
            raise UserError(message.read_text(encoding="utf-8") if message.is_file() else _explain(error)) from None
        except KeyboardInterrupt:
            for process in context.processes:
                process.terminate()
            for process in context.processes:
                process.join(GRACE_PERIOD)
                process.kill()
            raise


def _work(rank: int, body: Callable[[Group], None], world_size: int, device: str, threads: int, folder: Path) -> None:
    """Run one process of the group; it meets the others in `folder` and writes a UserError's message there."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)
    multiprocessing.set_start_method(None, force=True)  # data loaders use the platform's default, not spawn
    torch.set_num_threads(threads)
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    try:
        # no process waits in vain, because all are stopped if one fails; but the main process may wait long for a checkpoint
        # that another run is using
        _join(body, Group(rank, world_size, world_size), rank, device, f"file://{folder}/rendezvous", timedelta(days=7))
    except UserError as error:
        (folder / USER_ERROR).write_text(str(error), encoding="utf-8")
        sys.exit(1)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, so that a tracking run is closed; ignore further signals meanwhile.

    Ctrl-C reaches this process and its parent, which then sends SIGTERM. PyTorch sends SIGINT when the parent has ended.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: None)  # not SIG_IGN, with which Python warns of a signal that is already waiting
    raise KeyboardInterrupt


def _explain(error: ProcessException) -> str:
    *traceback, why = error.msg.strip().splitlines()
    if traceback:
        print(error.msg.strip(), file=sys.stderr)
    return f"Training stopped, because a process failed ({why}); `dvc repro` resumes it after the last complete epoch."
