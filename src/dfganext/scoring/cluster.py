"""Starts or joins Ray, and scores parts on it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dfganext
from dfganext import runtime
from dfganext.errors import UserError, one_line
from dfganext.scoring.model import Model
from dfganext.scoring.parts import Part, PartResult
from dfganext.scoring.recovery import PartRunner
from dfganext.scoring.stores import CONNECTIONS, Folder, Listing
from dfganext.scoring.workers import Worker, Writer

WORKERS_PER_GPU = 4
"""Decoding runs on a processor core, so a single worker would leave a GPU idle."""

OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of a local Ray: enough for the weights and the paths of about a million images; Ray writes more to disk."""

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Cluster:
    """A running Ray: workers to start, the share of a GPU of each, and whether other machines may be part of it."""

    workers: int
    gpus_per_worker: float
    shared: bool

    def score_parts(
        self, parts: Iterable[Part], model: Model, listing: Listing, folder: Folder
    ) -> Generator[PartResult, None, None]:
        """Score parts and write their rows; results come in the order in which the parts are done."""
        import ray

        references = [ray.put(part) for part in parts]  # Ray writes to disk what memory cannot hold
        writer = Writer(folder, model.version, strict=listing.remote or self.shared)
        files = ray.put({name: np.frombuffer(data, np.uint8) for name, data in model.files.items()})
        actor = ray.remote(num_cpus=1, num_gpus=self.gpus_per_worker)(Worker)
        threads = CONNECTIONS if listing.remote else 1
        runner = PartRunner(
            lambda: actor.remote(files, listing.read, threads, writer), self.workers, model.threshold, writer.write
        )
        return runner.run(references)


@contextmanager
def ray_for(workers: int | None) -> Iterator[Cluster]:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine, reachable from this machine only.

    A Ray that this process uses already is used, and left running.

    Args:
        workers: by default, as many as the cluster has room for.
    """
    address = os.environ.get("RAY_ADDRESS")
    _set_environment(local=not address)
    import ray

    running = ray.is_initialized()
    if not running:
        _connect(address) if address else _start(workers or runtime.cores())
    try:
        with redirect_stdout(sys.stderr):  # Ray prints a line for each worker that crashes
            yield _cluster(ray.cluster_resources(), workers, shared=bool(address))
    finally:
        if not running:
            ray.shutdown()


def _start(cores: int) -> None:
    _init("local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)


def _connect(address: str) -> None:
    """Join a cluster, and send it this package, so that its nodes need only the libraries that this package imports."""
    host = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    try:
        if host:  # fail soon: Ray itself tries for minutes
            socket.create_connection((host[1].strip("[]"), int(host[2])), CONNECT_SECONDS).close()
        package = str(Path(dfganext.__file__).parent)
        _init(address, runtime_env={"py_modules": [package], "excludes": ["__pycache__"]})
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS: no Ray can be used at {address} ({one_line(error)}): correct it, or unset it to score on this "
            "machine alone."
        ) from None


def _init(address: str, **options: Any) -> None:
    import ray

    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)


def _set_environment(local: bool) -> None:
    """Set variables that Ray reads when it is imported. local: Ray is started by this process, with no settings of its own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # otherwise Ray warns that this becomes the default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local:
        # Ray replaces 127.0.0.1 with an address that other machines can reach, and executes what they send. This variable
        # prevents it on every system. The token keeps out other users of this machine; Ray would store one in ~/.ray.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _cluster(resources: Mapping[str, float], workers: int | None, shared: bool) -> Cluster:
    """By default one worker per core, or WORKERS_PER_GPU per GPU where there are GPUs."""
    cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    number = workers or max(1, min(cores, WORKERS_PER_GPU * gpus) if gpus else cores)
    return Cluster(number, 1 / -(-number // gpus) if gpus else 0, shared)
