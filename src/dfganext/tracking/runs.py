"""The one helper that logs to MLflow: a parent run for a pipeline execution, a child run for each of its stages.

Everything lands in one store: sqlite:///<root>/mlflow.db with artifacts under <root>/mlruns, unless MLFLOW_TRACKING_URI
names another. MLflow takes seconds to import, so it is imported where the first run starts and not before.
"""

from __future__ import annotations

import csv
import getpass
import hashlib
import json
import os
import posixpath
import re
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dfganext import files, paths, versions
from dfganext import settings as settings_module
from dfganext.errors import UserError
from dfganext.settings import Settings
from dfganext.tracking import store

SAMPLING_SECONDS = 2.0
"""Between two readings of the system metrics: short stages get some, long ones not too many."""

_SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "ash", "busybox", "cmd.exe", "powershell.exe", "pwsh"}


class StageRun:
    """A stage's run in MLflow; what `stage_run` hands to the stage.

    id and parent_id are MLflow run ids. makers tells, for those of the stage's inputs that another run is on record to
    have made, which run that was: {path: run id}.
    """

    def __init__(self, client: store.Client, run_id: str, parent_id: str, makers: Mapping[str, str]) -> None:
        self._client, self.id, self.parent_id, self.makers = client, run_id, parent_id, dict(makers)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers on the stage's run; `step` is the epoch, where there is one."""
        _log_metrics(self._client, self.id, metrics, step)

    def log_key_metrics(self, metrics: Mapping[str, float]) -> None:
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
    client, experiment = store.connect()
    _end_the_dead(client, experiment)
    parent_id, failed_before = _parent(client, experiment, stage, settings)
    tags = {"mlflow.parentRunId": parent_id, "stage": stage, "process": _process(), **_origin()}
    run_id = client.create_run(experiment, tags=tags, run_name=stage).info.run_id
    status = "FAILED"
    try:
        run = StageRun(client, run_id, parent_id, _log_lineage(client, run_id, parent_id, reads))
        with _system_metrics(client, run_id):
            yield run
        _set_tags(
            client, run_id, {_tag("made", _name(path)): files.sha256_of(path) for path in makes if Path(path).exists()}
        )
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # trouble with the store must not hide why the stage itself failed
        with nullcontext() if status == "FINISHED" else suppress(UserError):
            client.set_terminated(run_id, status)
            client.set_terminated(parent_id, "FAILED" if failed_before and status == "FINISHED" else status)


def find_run(made: Path | str, sha256: str) -> str | None:
    """The id of the latest run that made `made` with this content, or None."""
    return _find_run(*store.connect(), _name(made), sha256)


def _process() -> str:
    """What tells this process from all others, later ones with the same id too: machine, user, id and start."""
    import psutil

    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return f"{socket.gethostname()} {user} {os.getpid()} {psutil.Process().create_time():.2f}"


def _end_the_dead(client: store.Client, experiment: str) -> None:
    """End the runs of this user's stages on this machine that were killed before they could say so, and their parents."""
    mine = f"attributes.status = 'RUNNING' and tags.process LIKE '{_process().rsplit(' ', 2)[0]} %'"
    for run in store.paginate(lambda token: client.search_runs([experiment], mine, page_token=token)):
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


def _parent(client: store.Client, experiment: str, stage: str, settings: Settings) -> tuple[str, bool]:
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


def _log_lineage(client: store.Client, run_id: str, parent_id: str, reads: Sequence[Path | str]) -> dict[str, str]:
    """Tag a run with what it reads and who made that; returns the makers, {path: run id}."""
    hashes = {_name(path): files.sha256_of(path) for path in reads if Path(path).exists()}
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


def _find_run(client: store.Client, experiment: str, name: str, sha256: str) -> str | None:
    runs = client.search_runs([experiment], f"tags.`{_tag('made', name)}` = '{sha256}'", max_results=1)
    return runs[0].info.run_id if runs else None


def _log_dataset(client: store.Client, run_id: str, split: Path, sha256: str) -> None:
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
def _system_metrics(client: store.Client, run_id: str) -> Iterator[None]:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, sampling_interval=SAMPLING_SECONDS, tracking_uri=client.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _log_metrics(client: store.Client, run_id: str, metrics: Mapping[str, float], step: int | None) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(key, float(value), now, step or 0) for key, value in metrics.items()])


def _log_settings(client: store.Client, run_id: str, settings: Settings) -> None:
    from mlflow.entities import Param

    texts = settings_module.as_texts(settings_module.flatten(settings))
    client.log_batch(run_id, params=[Param(key, text) for key, text in texts.items()])


def _set_tags(client: store.Client, run_id: str, tags: Mapping[str, object]) -> None:
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
