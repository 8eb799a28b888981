"""Verdicts on very many images: `dfganext score`, on Ray Data.

The images that have no row yet are cut into parts. A worker judges a whole part and writes it as one Parquet file under a
name that follows from its content, so that a part which is done twice, since its worker died before it could say so, is still
there once. Ray and pyarrow are imported where they are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import dfganext
from dfganext import process
from dfganext.data.trees import printable
from dfganext.errors import UserError, one_line
from dfganext.inputs import BATCH_BYTES, BATCH_FILES, Found
from dfganext.stores import CONNECTIONS, Folder, Listing, folder_at, images_at

if TYPE_CHECKING:
    import pyarrow as pa

    from dfganext.detector import Detector

COLUMNS = ("path", "label", "p_fake", "error", "model_version")

RECORD = "_score.json"
"""In OUT, whose verdicts it holds. Readers of Parquet folders pass over names that begin so."""

PART_IMAGES = 1024
"""What a killed worker loses, and what a file of rows holds: 10 million images are 10,000 files of some 30 kB."""

ATTEMPTS = 5
"""Workers that may die of a part before it is given up; those that an image was found guilty of do not count."""

KILLER = "kills the process that decodes it"

WORKERS_A_GPU = 4
"""Decoding takes a processor's time, so one worker would leave a GPU idle."""

OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of a local Ray: the weights once, and the paths of a million images or so; more goes to disk."""

PROGRESS_SECONDS = 30.0
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Summary:
    """How a run ended: where the rows are, and numbers of images.

    total: in IN, each once. before: of these, had a row already. judged: got a row now. unread: have a row with an error, of now
    or before. lost: the first and the last path of each part that has no rows, since ATTEMPTS workers died of it.
    """

    where: str
    total: int
    before: int
    judged: int
    unread: int
    lost: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Model:
    """A detector to be sent to workers: its files by name, the version that rows show, and what tells it from others.

    sha256 is over weights, config, threshold, temperature and precision: models with the same one give the same verdicts.
    """

    files: Mapping[str, bytes]
    version: str
    sha256: str
    threshold: float
    temperature: float


class Part(NamedTuple):
    """Images that are judged together, and the name of the file that their rows go to."""

    name: str
    images: Sequence[Found]


class Done(NamedTuple):
    """What happened to a part: the images that got a row, those of them with an error; or why there are no rows, if so.

    failure: something that other parts will suffer from as well, such as a full disk. lost: it kills its workers.
    """

    name: str
    images: int = 0
    unread: int = 0
    failure: str = ""
    lost: bool = False


def score(
    places: Sequence[str],
    out: str,
    model: str | None = None,
    workers: int | None = None,
    part_images: int = PART_IMAGES,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Judge the images that have no row in a folder yet, and write their rows to it.

    Args:
        places: files, folders and globs, or one address in an object store; see `stores.images_at`.
        out: folder of the rows, Parquet files with `COLUMNS`, local or in an object store.
        model: as for `registry.resolve`; by default the champion.
        workers: processes that judge; by default one a processor core, where there are GPUs WORKERS_A_GPU for each.
        part_images: images a Parquet file.
        say: is told how far it is, a line now and then.

    Raises:
        UserError: Ray is missing or cannot be reached, there is no image or no model, out holds something else, or its rows
            cannot be written. Parts that were written stay, and the next run goes on from there.
    """
    _needs_ray()
    listing = images_at(places)
    folder = folder_at(out)
    chosen = _agreed(folder, load_model(model))
    plan = Plan(listing, Scored.read(folder), part_images)
    parts = iter(plan)
    first = next(parts, None)
    if not plan.total:
        raise UserError(f"There is no image in {listing.name}: give files, or folders with images in them.")
    if first is None:
        return Summary(folder.name, plan.total, plan.before, 0, plan.unread_before)
    _claim(folder, chosen)
    with _ray(workers) as cluster:
        done = cluster.judge(chain([first], parts), chosen, listing, folder)
        judged, unread, lost = _follow(done, plan, say)
    return Summary(folder.name, plan.total, plan.before, judged, plan.unread_before + unread, lost)


def load_model(uri: str | None) -> Model:
    """Read a detector's files, after a look at whether they are whole. UserError if there is none."""
    import torch

    from dfganext import registry
    from dfganext.detector import OPERATING_POINT_FILE, Detector
    from dfganext.models.classifier import CONFIG_FILE, WEIGHTS_FILE

    address = registry.pinned(uri or registry.CHAMPION_URI)
    with registry.resolve(address) as folder:
        detector = Detector.load(folder, device=torch.device("cpu"))
        names = (WEIGHTS_FILE, CONFIG_FILE, OPERATING_POINT_FILE)
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    told = hashlib.sha256()
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        told.update(hashlib.sha256(files[name]).digest())
    told.update(json.dumps([detector.threshold, detector.temperature, detector.precision]).encode())
    version = address if address.startswith("models:/") else f"sha256:{told.hexdigest()[:16]}"
    return Model(files, version, told.hexdigest(), detector.threshold, detector.temperature)


@dataclass(frozen=True)
class Scored:
    """The images that have a row, as sorted digests of their paths (S16), and which of those rows tell of an error (bool)."""

    digests: np.ndarray
    unread: np.ndarray

    @classmethod
    def read(cls, folder: Folder) -> Scored:
        """Collect them from all parts in a folder. UserError if one cannot be read."""
        names = sorted(name for name in folder.names() if name.startswith("part-") and name.endswith(".parquet"))
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            found = list(threads.map(lambda name: _rows_of(folder, name), names))
        digests = np.concatenate([np.empty(0, "S16"), *(one for one, _ in found)])
        unread = np.concatenate([np.empty(0, bool), *(one for _, one in found)])
        order = np.argsort(digests, kind="stable")
        return cls(digests[order], unread[order])

    def among(self, images: Sequence[Found]) -> tuple[np.ndarray, int]:
        """Which of the images have a row (bool), and how many of them have one with an error."""
        if not len(self.digests):
            return np.zeros(len(images), bool), 0
        wanted = digests_of([printable(image.path) for image in images])
        places = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        known = self.digests[places] == wanted
        return known, int(np.sum(self.unread[places[known]]))


class Plan:
    """The parts that are left to do; counts, as it is gone through, what there is and what is done.

    What is done is taken off image by image, so that images may have joined or left IN since. With the same images, the same
    parts come out as before: a run that is still writing cannot get in the way of the next one.
    """

    def __init__(self, listing: Listing, scored: Scored, part_images: int) -> None:
        self.listing, self.scored, self.part_images = listing, scored, part_images
        self.total = self.before = self.unread_before = 0
        self.ends: dict[str, tuple[str, str]] = {}

    def __iter__(self) -> Iterator[Part]:
        left: list[Found] = []
        started = 0
        images = self.listing.images
        while chunk := list(islice(images, self.part_images)):
            known, unread = self.scored.among(chunk)
            self.before += int(np.sum(known))
            self.unread_before += unread
            for image, done in zip(chunk, known, strict=True):
                if not done:
                    started = started if left else self.total
                    left.append(image)
                self.total += 1
                if len(left) == self.part_images:
                    yield self._part(started, left)
                    left = []
        if left:
            yield self._part(started, left)

    def _part(self, started: int, images: Sequence[Found]) -> Part:
        paths = [printable(image.path) for image in images]
        content = hashlib.sha256("\0".join(paths).encode()).hexdigest()[:16]
        name = f"part-{started // self.part_images:08d}-{content}.parquet"
        self.ends[name] = (paths[0], paths[-1])
        return Part(name, images)


class Watch:
    """An actor beside the workers that remembers, of every part in work, how the attempts at it ended."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def begin(self, name: str) -> list[int]:
        """Note an attempt at a part. Where each earlier one was last seen: the image's place, or -1."""
        attempts = self.seen.setdefault(name, [])
        attempts.append(-1)
        return attempts[:-1]

    def at(self, name: str, place: int) -> None:
        """Note that the present attempt has come to the image at this place."""
        self.seen[name][-1] = place

    def end(self, name: str) -> None:
        """Forget a part that is done."""
        self.seen.pop(name, None)


class Worker:
    """Judges parts and writes their rows; Ray Data makes one in each of its processes.

    Args:
        files: reference to a `Model`'s files, as arrays of bytes.
        version: what the rows say of the model.
        read: a `Listing`'s.
        strict: where none of a part's images can be read, it is for a reason that has nothing to do with them, and there shall
            be no rows that say so.
        threads: reads at a time.
        folder: where the rows go.
        watch: handle of the `Watch`.
    """

    def __init__(
        self,
        files: Any,
        version: str,
        read: Callable[[str], bytes | str],
        strict: bool,
        threads: int,
        folder: Folder,
        watch: Any,
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(1)  # a worker has one core
        self.detector = _detector(ray.get(files))
        self.version, self.read, self.strict, self.threads = version, read, strict, threads
        self.folder, self.watch, self.wait = folder, watch, ray.get

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do the parts of a table as `_described` makes them (as it is called, one); a `Done` each."""
        import pyarrow as pa

        done = [self._do(part) for part in map(_part_of, batch.to_pylist())]
        return pa.table({name: [getattr(one, name) for one in done] for name in Done._fields})

    def _do(self, part: Part) -> Done:
        """What the user can put right is told, not raised: Ray would bury it in a traceback."""
        deaths = self.wait(self.watch.begin.remote(part.name))
        guilty = {place for place in deaths if place >= 0 and deaths.count(place) > 1}
        if len(deaths) - 2 * len(guilty) >= ATTEMPTS:
            return Done(part.name, lost=True)
        if deaths:
            rows = list(self._one_by_one(part, guilty))
        else:
            rows = list(judge_images(self.detector, part.images, self.read, self.threads))
        if self.strict and not any(row.data_read for row in rows):
            return Done(part.name, failure=f"{rows[0].path} {rows[0].error}, and so does all that follows it")
        try:
            self.folder.write(part.name, _parquet(rows, self.version))
        except OSError as error:
            return Done(part.name, failure=f"{self.folder.name}/{part.name} cannot be written ({one_line(error)})")
        self.wait(self.watch.end.remote(part.name))
        return Done(part.name, len(rows), sum(row.error is not None for row in rows))

    def _one_by_one(self, part: Part, guilty: set[int]) -> Iterator[Row]:
        """Rows of a part that workers died of: should it happen again, it is known at which image."""
        for place, image in enumerate(part.images):
            if place in guilty:
                yield Row(printable(image.path), None, None, KILLER, True)
            else:
                self.wait(self.watch.at.remote(part.name, place))
                yield from judge_images(self.detector, [image], self.read)


class Row(NamedTuple):
    """What is said of one image, and whether there were bytes to say it of."""

    path: str
    label: str | None
    p_fake: float | None
    error: str | None
    data_read: bool


def judge_images(
    detector: Detector, images: Sequence[Found], read: Callable[[str], bytes | str], threads: int = 1
) -> Iterator[Row]:
    """A row an image, in order; the next batch is read, `threads` files at a time, while one is judged."""
    with ThreadPoolExecutor(threads) as pool:
        coming = ([(image, pool.submit(read, image.path)) for image in batch] for batch in _batches(images))
        now = next(coming, None)
        while now:
            ahead = next(coming, None)
            yield from _judge(detector, [(image, future.result()) for image, future in now])
            now = ahead


def digests_of(paths: Sequence[str]) -> np.ndarray:
    """128 bits a path, S16: in a store of 10^12 images, two would be taken for one with a chance of 10^-15."""
    return np.array([hashlib.blake2b(path.encode(), digest_size=16).digest() for path in paths], "S16")


def _batches(images: Sequence[Found]) -> Iterator[list[Found]]:
    batch: list[Found] = []
    held = 0
    for image in images:
        if batch and (len(batch) == BATCH_FILES or held + image.size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(image)
        held += image.size
    if batch:
        yield batch


def _judge(detector: Detector, batch: Sequence[tuple[Found, bytes | str]]) -> Iterator[Row]:
    for (image, data), verdict in zip(batch, detector.judge([data for _, data in batch]), strict=True):
        yield Row(printable(image.path), verdict.label, verdict.p_fake, verdict.error, isinstance(data, bytes))


def _parquet(rows: Sequence[Row], version: str) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    schema = pa.schema(list(zip(COLUMNS, (text, text, pa.float64(), text, text), strict=True)))
    table = pa.Table.from_pylist([row._asdict() | {"model_version": version} for row in rows], schema)
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def _rows_of(folder: Folder, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Digests of the paths in a part, and which of them have an error."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(folder.read(name)), columns=["path", "error"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.name}/{name} cannot be read ({one_line(error)}): if it is damaged, delete it, and its images are judged again."
        ) from None
    return digests_of(table["path"].to_pylist()), table["error"].is_valid().to_numpy()


def _detector(files: Mapping[str, Any]) -> Detector:
    from dfganext.detector import Detector

    with tempfile.TemporaryDirectory() as temporary:
        for name, data in files.items():
            Path(temporary, name).write_bytes(data)
        return Detector.load(Path(temporary))


def _agreed(folder: Folder, model: Model) -> Model:
    """The model under the name by which a folder knows it. UserError where the folder holds anything but its verdicts."""
    names = folder.names()
    if RECORD not in names:
        if any(not name.startswith(".") for name in names):
            raise UserError(
                f"{folder.name} holds other files than `dfganext score` writes: name a new or an empty folder."
            )
        return model
    try:
        theirs = json.loads(folder.read(RECORD))["model"]
        same, version, threshold = theirs["sha256"] == model.sha256, theirs["version"], theirs["threshold"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder.name}/{RECORD} cannot be read ({one_line(error)}): name another folder.") from None
    if not same:
        raise UserError(
            f"{folder.name} holds verdicts of another model, {version} with threshold {threshold:.6g}, not of {model.version} "
            f"with {model.threshold:.6g}: name another folder, or that model with --model."
        )
    return replace(model, version=version)


def _claim(folder: Folder, model: Model) -> None:
    record = {
        "model": {
            "version": model.version,
            "sha256": model.sha256,
            "threshold": model.threshold,
            "temperature": model.temperature,
        },
        "columns": COLUMNS,
        "dfganext": dfganext.__version__,
    }
    if RECORD not in folder.names():
        try:
            folder.write(RECORD, (json.dumps(record, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{folder.name} cannot be written to ({one_line(error)}): name another folder.") from None


def _needs_ray() -> None:
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise UserError("Scoring runs on Ray, which is not installed: pip install 'df-ganext[scale]'.")


@dataclass(frozen=True)
class Cluster:
    """A running Ray: workers it shall have, the share of a GPU for each, and whether it is more than this process's own."""

    workers: int
    gpus_a_worker: float
    shared: bool

    def judge(self, parts: Iterator[Part], model: Model, listing: Listing, folder: Folder) -> Iterator[Done]:
        """What happened to the parts, as it happens.

        Ray Data starts a worker that died anew, and its part again, as often as it takes.
        """
        import ray

        watch = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Watch).remote()
        files = ray.put({name: np.frombuffer(data, np.uint8) for name, data in model.files.items()})
        blocks: list[Any] = [ray.put(_described(part)) for part in parts]
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
def _ray(workers: int | None) -> Iterator[Cluster]:
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


def _described(part: Part) -> pa.Table:
    """A part as a block of Ray Data, one row; paths as bytes, since some file names are no text."""
    import pyarrow as pa

    return pa.table(
        {
            "name": [part.name],
            "paths": pa.array([[os.fsencode(image.path) for image in part.images]], pa.list_(pa.binary())),
            "sizes": pa.array([[image.size for image in part.images]], pa.list_(pa.int64())),
        }
    )


def _part_of(row: Mapping[str, Any]) -> Part:
    pairs = zip(row["paths"], row["sizes"], strict=True)
    return Part(row["name"], [Found(os.fsdecode(path), size) for path, size in pairs])


def _follow(done: Iterator[Done], plan: Plan, say: Callable[[str], None]) -> tuple[int, int, Sequence[tuple[str, str]]]:
    """Go through what is done, and tell of it now and then; UserError where a part failed for a reason that others share.

    Returns:
        Images judged, those of them with an error, and the first and last path of each part that was lost.
    """
    judged = unread = 0
    lost: list[tuple[str, str]] = []
    began = said = time.monotonic()
    for one in done:
        if one.failure:
            raise UserError(f"{one.failure}: put it right and start again; the rows written so far stay.")
        judged, unread = judged + one.images, unread + one.unread
        lost += [plan.ends[one.name]] if one.lost else []
        now = time.monotonic()
        if now > said + PROGRESS_SECONDS:
            said = now
            say(_progress(plan, judged, now - began))
    return judged, unread, lost


def _progress(plan: Plan, judged: int, seconds: float) -> str:
    speed = max(judged, 1) / seconds
    left = plan.total - plan.before - judged
    return f"{plan.before + judged:,} of {plan.total:,} images; {speed:,.1f} a second, {left / speed / 60:,.0f} minutes left"
