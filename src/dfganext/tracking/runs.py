"""The one helper that logs to MLflow: a parent run for a pipeline execution, a child run for each of its stages.

Everything lands in one store: sqlite:///<root>/mlflow.db with artifacts under <root>/mlruns, unless MLFLOW_TRACKING_URI
names another. MLflow takes seconds to import, so it is imported where the first run starts and not before.
"""

from __future__ import annotations

import csv
import functools
import getpass
import hashlib
import json
import logging
import os
import posixpath
import re
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from dfganext import paths, versions
from dfganext import settings as settings_module
from dfganext.errors import UserError
from dfganext.settings import Settings

EXPERIMENT = "df-ganext"
SAMPLING_SECONDS = 2.0
"""Between two readings of the system metrics: short stages get some, long ones not too many."""

_SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "ash", "busybox", "cmd.exe", "powershell.exe", "pwsh"}
_TRIES = 5


class StoreError(UserError):
    """The tracking store cannot be used."""


class NotFoundError(UserError):
    """The tracking store answered that it holds no such thing."""


class StageRun:
    """A stage's run in MLflow; what `stage_run` hands to the stage.

    id and parent_id are MLflow run ids. makers tells, for those of the stage's inputs that another run is on record to
    have made, which run that was: {path: run id}.
    """

    def __init__(self, client: Client, run_id: str, parent_id: str, makers: Mapping[str, str]) -> None:
        self._client, self.id, self.parent_id, self.makers = client, run_id, parent_id, dict(makers)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers on the stage's run; `step` is the epoch, where there is one."""
        _log_metrics(self._client, self.id, metrics, step)

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Log numbers on the stage's run and on its parent, where experiments are compared."""
        for run_id in (self.id, self.parent_id):
            _log_metrics(self._client, run_id, metrics, None)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or a folder's content, to `folder` of the stage's artifacts."""
        log = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        log(self.id, str(path), folder)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags on the stage's run."""
        _set_tags(self._client, self.id, tags)


@contextmanager
def stage_run(
    stage: str, settings: Settings, reads: Sequence[Path | str] = (), makes: Sequence[Path | str] = ()
) -> Iterator[StageRun]:
    """The run of a stage, beneath the run of the pipeline execution that it belongs to.

    Args:
        stage: its name in dvc.yaml.
        settings: all of them; they are logged on the parent.
        reads: inputs, files or folders. Each is hashed at the start (tag read.<path>), and tag made_by.<path> is the id
            of the run that made it, where one is known.
        makes: outputs; hashed at the end of a stage that succeeds (tag made.<path>).

    Raises:
        UserError: the tracking store cannot be used. What the stage had written by then stays.
    """
    versions.require_recorded(paths.VERSIONS)
    client, experiment = connect()
    _end_the_dead(client, experiment)
    parent_id, failed_before = _parent(client, experiment, stage, settings)
    tags = {"mlflow.parentRunId": parent_id, "stage": stage, "process": _process(), **_origin()}
    run_id = client.create_run(experiment, tags=tags, run_name=stage).info.run_id
    status = "FAILED"
    try:
        run = StageRun(client, run_id, parent_id, _log_lineage(client, run_id, parent_id, reads))
        with _system_metrics(client, run_id):
            yield run
        _set_tags(client, run_id, {_tag("made", _name(path)): sha256_of(path) for path in makes if Path(path).exists()})
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # trouble with the store must not hide why the stage itself failed
        with nullcontext() if status == "FINISHED" else suppress(UserError):
            client.set_terminated(run_id, status)
            client.set_terminated(parent_id, "FAILED" if failed_before and status == "FINISHED" else status)


def every(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """All that a search of MLflow's finds; `search` is given the token of the page that it is to return."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def sha256_of(path: Path | str) -> str:
    """sha256 of a file, or of a folder: over its sorted lines "<relative path> <sha256>\\n"."""
    path = Path(path)
    if path.is_dir():
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        lines = (f"{name} {sha256_of(file)}\n" for name, file in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    status = path.stat()
    return _sha256_of_file(path.resolve(), status.st_mtime_ns, status.st_size)


@functools.cache  # a stage asks for the arrays' hash twice, for its checkpoint and for its run
def _sha256_of_file(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_run(made: Path | str, sha256: str) -> str | None:
    """The id of the latest run that made `made` with this content, or None."""
    return _find_run(*connect(), _name(made), sha256)


def root() -> Path:
    """The folder of the store: the repository's, also from the temporary workspaces of DVC's experiments."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


def tracking_uri() -> str:
    """Where runs and registered models are kept: MLFLOW_TRACKING_URI, else the database at the root."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"]
    file = (root() / "mlflow.db").as_posix()
    if "?" in file or unquote(file) != file:  # of an address, it would be something else
        raise StoreError(f"{file} cannot be MLflow's database for the ? or % in its path: rename the folder.")
    return f"sqlite:///{file}"


def exists() -> bool:
    """False where the store is a database file that has yet to be made."""
    file = _database_file()
    return file is None or file.is_file()


@contextmanager
def store_lock(purpose: str = "setup") -> Iterator[None]:
    """Around what two processes of this machine must not do to the store at once. StoreError where it cannot be locked."""
    file = _database_file() or root() / "mlflow.db"
    lock = FileLock(f"{file}.{purpose}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise StoreError(
            f"The tracking store {file} cannot be used ({lock.lock_file}: {error.strerror}): make its folder writable, or name "
            "another store with MLFLOW_TRACKING_URI."
        ) from None
    try:
        yield
    finally:
        lock.release()


def connect() -> tuple[Client, str]:
    """A client of the store and the id of the experiment in it, both made where they are missing."""
    # MLflow's own creation of a database fails when two processes attempt it; a server has made its own
    with nullcontext() if _is_server(tracking_uri()) else store_lock():
        client = Client(tracking_uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                location = None if _is_server(client.uri) else str((root() / "mlruns").resolve())
                return client, client.create_experiment(EXPERIMENT, artifact_location=location)
            except UserError:  # on a server another machine may have been faster
                experiment = client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"The experiment {EXPERIMENT} was deleted in {shown(client.uri)}: restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`."
        )
    return client, experiment.experiment_id


class Client:
    """MlflowClient whose failures are UserErrors that name the store, and that tries again where others were faster."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        mlflow = import_mlflow()
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)  # where MLflow looks aliases and logged models up, whatever a client is told
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # set by the call above; the next look is at the root again
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or uri
        self._client = guarded(uri, lambda: mlflow.MlflowClient(uri, registry))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        @functools.wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            return guarded(self.uri, lambda: method(*args, **options))

        return call


def import_mlflow() -> Any:
    """The module mlflow, without its chatter, its usage reports, and its four minutes of patience with a dead server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for each run on a server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    try:
        import mlflow
    except ImportError:
        raise UserError("MLflow is not installed: pip install 'df-ganext[pipeline]'.") from None
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    return mlflow


def guarded(uri: str, call: Callable[[], Any]) -> Any:
    """The result of a call to the store at `uri`; its failures as NotFoundError or StoreError, each a UserError."""
    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            missing_alias = re.search(r"alias \S+ not found", str(error))  # MLflow's code for it says otherwise
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST" or missing_alias:
                raise NotFoundError(f"{shown(uri)} has no such thing: {_one_line(error)}") from error
            if attempt < _TRIES and _may_pass(error):
                time.sleep(attempt)
                continue
            raise StoreError(
                f"The tracking store {shown(uri)} cannot be used ({_one_line(error)}): start it, correct "
                "MLFLOW_TRACKING_URI, or unset it to track in mlflow.db; what was written so far is kept."
            ) from error
    raise AssertionError("unreachable")


def shown(uri: str) -> str:
    """A store's address, or a text with it, without the password that may be in it."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", uri)


def _process() -> str:
    """What tells this process from all others, later ones with the same id too: machine, user, id and start."""
    import psutil

    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return f"{socket.gethostname()} {user} {os.getpid()} {psutil.Process().create_time():.2f}"


def _end_the_dead(client: Client, experiment: str) -> None:
    """End the runs of this user's stages on this machine that were killed before they could say so, and their parents."""
    mine = f"attributes.status = 'RUNNING' and tags.process LIKE '{_process().rsplit(' ', 2)[0]} %'"
    for run in every(lambda token: client.search_runs([experiment], mine, page_token=token)):
        number, started = run.data.tags["process"].rsplit(" ", 2)[1:]
        if not _lives(int(number), float(started)):
            for run_id in (run.info.run_id, run.data.tags["mlflow.parentRunId"]):
                with suppress(UserError):  # somebody has deleted it
                    client.set_terminated(run_id, "KILLED")


def _lives(number: int, started: float) -> bool:
    """Whether the process with this id is there still, and not another since; the clock may have been set in between."""
    import psutil

    try:
        return abs(psutil.Process(number).create_time() - started) < 10
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _parent(client: Client, experiment: str, stage: str, settings: Settings) -> tuple[str, bool]:
    """The run of this pipeline execution, marked as running, and whether a stage of it has failed already."""
    execution, started = _execution()
    for run in client.search_runs([experiment], f"tags.execution = '{execution}'"):
        # process ids come round again; the clock may have been set in between, so the times are compared loosely
        if abs(float(run.data.tags.get("execution.started", 0)) - started) < 10:
            failed = run.info.status in ("FAILED", "KILLED")
            if not failed:
                client.update_run(run.info.run_id, status="RUNNING")
            return run.info.run_id, failed
    origin = _origin()
    tags = {"execution": execution, "execution.started": str(started), **origin}
    run_id = client.create_run(experiment, tags=tags, run_name=_parent_name(stage, origin)).info.run_id
    _log_settings(client, run_id, settings)
    return run_id, False


def _execution() -> tuple[str, float]:
    """What tells one pipeline execution from another: the DVC process that started this stage, and its start in seconds.

    `dvc repro` hands no name of the execution to its stages, but all of them have the same ancestor.
    """
    import psutil  # pipelines need it, prediction does not

    if "DVC_STAGE" not in os.environ:
        return f"by hand {uuid.uuid4().hex}", time.time()
    ancestors = [process for process in psutil.Process().parents() if process.name() not in _SHELLS]
    starter = next(filter(_is_dvc, ancestors), ancestors[0] if ancestors else psutil.Process())
    name = re.sub(r"[^\w.-]", "_", os.environ.get("DVC_EXP_NAME", "repro"))  # for it stands in MLflow's filters
    return f"{name} {socket.gethostname()} {starter.pid}", starter.create_time()


def _is_dvc(process: Any) -> bool:
    with suppress(Exception):  # another user's process may not be looked at
        return any(Path(word).name in ("dvc", "dvc.exe") for word in (process.name(), *process.cmdline()[:3]))
    return False


def _origin() -> dict[str, str]:
    """Tags that say whose code, from which commit and in which DVC experiment."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container's nameless user
        tags["mlflow.user"] = getpass.getuser()
    commit = _git("rev-parse", "HEAD")
    if commit:
        # what every execution rewrites says nothing of the code that ran
        results = [f":(exclude){path}" for path in ("dvc.lock", paths.METRICS.as_posix())]
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *results)
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}
    for tag, variable in (("dvc.experiment", "DVC_EXP_NAME"), ("dvc.baseline", "DVC_EXP_BASELINE_REV")):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _parent_name(stage: str, origin: Mapping[str, str]) -> str:
    if "dvc.experiment" in origin:
        return origin["dvc.experiment"]
    what = "repro" if "DVC_STAGE" in os.environ else f"{stage} by hand"
    commit = origin.get("mlflow.source.git.commit", "")[:7] + ("+" if origin.get("git.dirty") == "true" else "")
    return " ".join(filter(None, (what, commit, f"{datetime.now():%Y-%m-%d %H:%M}")))


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _log_lineage(client: Client, run_id: str, parent_id: str, reads: Sequence[Path | str]) -> dict[str, str]:
    """Tag a run with what it reads and who made that; returns the makers, {path: run id}."""
    hashes = {_name(path): sha256_of(path) for path in reads if Path(path).exists()}
    experiment = client.get_run(run_id).info.experiment_id
    found = {name: _find_run(client, experiment, name, sha256) for name, sha256 in hashes.items()}
    makers = {name: run for name, run in found.items() if run is not None}
    tags = {_tag("read", name): sha256 for name, sha256 in hashes.items()}
    tags |= {_tag("made_by", name): run for name, run in makers.items()}
    split = _name(paths.SPLIT)
    if split in hashes:
        tags["dataset.sha256"] = hashes[split]
        _set_tags(client, parent_id, {"dataset.sha256": hashes[split]})
        for one in (run_id, parent_id):
            _log_dataset(client, one, paths.SPLIT, hashes[split])
    _set_tags(client, run_id, tags)
    return makers


def _find_run(client: Client, experiment: str, name: str, sha256: str) -> str | None:
    runs = client.search_runs([experiment], f"tags.`{_tag('made', name)}` = '{sha256}'", max_results=1)
    return runs[0].info.run_id if runs else None


def _log_dataset(client: Client, run_id: str, split: Path, sha256: str) -> None:
    """Put the split into the run's column of data sets, with the number of images by split and class."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    with split.open(newline="", encoding="utf-8") as stream:
        counts = Counter(f"{row.get('split')} {row.get('label')}" for row in csv.DictReader(stream))
    dataset = Dataset(
        name=split.name,
        digest=sha256[:32],  # MLflow's limit is 36 characters; the whole is in the tag dataset.sha256
        source_type="local",
        source=json.dumps({"uri": split.as_posix()}),
        profile=json.dumps({"num_rows": counts.total(), **dict(sorted(counts.items()))}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "faces")])])


@contextmanager
def _system_metrics(client: Client, run_id: str) -> Iterator[None]:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, sampling_interval=SAMPLING_SECONDS, tracking_uri=client.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _log_metrics(client: Client, run_id: str, metrics: Mapping[str, float], step: int | None) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(key, float(value), now, step or 0) for key, value in metrics.items()])


def _log_settings(client: Client, run_id: str, settings: Settings) -> None:
    from mlflow.entities import Param

    texts = settings_module.as_texts(settings_module.flatten(settings))
    client.log_batch(run_id, params=[Param(key, text) for key, text in texts.items()])


def _set_tags(client: Client, run_id: str, tags: Mapping[str, object]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])


def _name(path: Path | str) -> str:
    """A path as tags have it: relative to the working directory where it lies in it, with forward slashes."""
    path = Path(path)
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()


def _tag(kind: str, name: str) -> str:
    """The tag's name for what a path was to a run: <kind>.<path>, or, where MLflow takes no such name, an abridged one."""
    tag = f"{kind}.{name}"
    if re.fullmatch(r"[\w.\- :/]{1,200}", tag) and posixpath.normpath(tag) == tag:
        return tag
    legible = re.sub(r"[^\w.\- ]", "_", name)[-60:]
    return f"{kind}.{legible} {hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"


def _database_file() -> Path | None:
    uri = tracking_uri()
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: SQLite is busy, or two processes made the same row at once."""
    clash = "IntegrityError" in str(error) or "UniqueViolation" in str(error)
    return "database is locked" in str(error) or (clash and getattr(error, "error_code", "") == "BAD_REQUEST")


def _one_line(error: BaseException) -> str:
    return shown(" ".join(str(error).split()))[:300] or type(error).__name__
