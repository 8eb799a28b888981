"""Ray: one of this process's own, or the cluster of RAY_ADDRESS, and the parts' way through its workers."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dfganext
from dfganext import runtime as process
from dfganext.errors import UserError, one_line
from dfganext.scoring.model import Model
from dfganext.scoring.parts import Done, Part
from dfganext.scoring.stores import CONNECTIONS, Folder, Listing
from dfganext.scoring.workers import Watch, Worker

WORKERS_A_GPU = 4
"""Decoding takes a processor's time, so one worker would leave a GPU idle."""

OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of a local Ray: the weights once, and the paths of a million images or so; more goes to disk."""

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Cluster:
    """A running Ray: workers it shall have, the share of a GPU for each, and whether it is more than this process's own."""

    workers: int
    gpus_a_worker: float
    shared: bool

    def predict(self, parts: Iterator[Part], model: Model, listing: Listing, folder: Folder) -> Iterator[Done]:
        """What happened to the parts, as it happens.

        Ray Data starts a worker that died anew, and its part again, as often as it takes.
        """
        import ray

        watch = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Watch).remote()
        files = ray.put({name: np.frombuffer(data, np.uint8) for name, data in model.files.items()})
        blocks: list[Any] = [ray.put(part.as_block()) for part in parts]
        done = ray.data.from_arrow_refs(blocks).map_batches(
            Worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(blocks))),
            fn_constructor_kwargs={
                "files": files,
                "version": model.version,
                "read": listing.read,
                "strict": listing.remote or self.shared,
                "threads": CONNECTIONS if listing.remote else 1,
                "folder": folder,
                "watch": watch,
            },
            num_cpus=1,
            num_gpus=self.gpus_a_worker,
        )
        return (Done(**row) for row in done.iter_rows())


@contextmanager
def ray_for(workers: int | None) -> Iterator[Cluster]:
    """The Ray of RAY_ADDRESS, or one of this process's own, on this machine and for this machine only."""
    address = os.environ.get("RAY_ADDRESS")
    _set_environment(own=not address)
    import ray
    import ray.data

    if address:
        _connect(address)
    else:
        cores = workers or process.cores()
        _init("local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        with redirect_stdout(sys.stderr):  # where Ray's word that a worker died belongs
            yield _cluster(ray.cluster_resources(), workers, shared=bool(address))
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Join a cluster, and send it this package, so that its nodes need only what this package imports."""
    end = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    try:
        if end:  # Ray itself waits for minutes
            socket.create_connection((end[1].strip("[]"), int(end[2])), CONNECT_SECONDS).close()
        package = str(Path(dfganext.__file__).parent)
        _init(address, runtime_env={"py_modules": [package], "excludes": ["__pycache__"]})
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS: no Ray can be used at {address} ({one_line(error)}): correct it, or unset it to score on this "
            "machine alone."
        ) from None


def _init(address: str, **options: Any) -> None:
    """ray.init without the line with which it confirms RAY_BACKEND_LOG_LEVEL, written past Python's sys.stderr."""
    import ray

    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _set_environment(own: bool) -> None:
    """What Ray reads when it is imported. own: it is for this process, and not a cluster with settings of its own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns that it will become the default
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # or it warns of what Ray Data does on purpose
    if own:
        # Ray turns 127.0.0.1 into an address that others can reach, and executes what they send: this is what keeps it
        # from that, on any system. Against other users of this machine it asks for a token, which it would keep in ~/.ray.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _cluster(resources: Mapping[str, float], workers: int | None, shared: bool) -> Cluster:
    cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    number = workers or max(1, min(cores, WORKERS_A_GPU * gpus) if gpus else cores)
    return Cluster(number, 1 / -(-number // gpus) if gpus else 0, shared)
