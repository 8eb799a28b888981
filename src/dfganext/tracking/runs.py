"""Stages log to MLflow: one parent run for each pipeline execution, with one child run for each of its stages."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from dfganext import files, paths, versions
from dfganext import settings as settings_module
from dfganext.errors import UserError
from dfganext.settings import Settings
from dfganext.tracking import processes, store

SAMPLING_SECONDS = 2.0
"""Time between two readings of the system metrics: short stages get some, long stages not too many."""


class StageRun:
    """The MLflow run of a stage, from `stage_run`.

    id and parent_id are MLflow run IDs. makers has, for each input that another recorded run made, the ID of that run:
    {path: run ID}.
    """

    def __init__(self, client: store.Client, run_id: str, parent_id: str, makers: Mapping[str, str]) -> None:
        self._client, self.id, self.parent_id, self.makers = client, run_id, parent_id, dict(makers)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers on the stage's run; `step` is the epoch, if there is one."""
        _log_metrics(self._client, self.id, metrics, step)

    def log_key_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log numbers on the stage's run and on its parent; users compare experiments by their parents."""
        for run_id in (self.id, self.parent_id):
            _log_metrics(self._client, run_id, metrics, None)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or the content of a folder, to `folder` in the stage's artifacts."""
        log = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        log(self.id, str(path), folder)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags on the stage's run."""
        _set_tags(self._client, self.id, tags)

    def set_key_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags on the stage's run and on its parent; users compare experiments by their parents."""
        for run_id in (self.id, self.parent_id):
            _set_tags(self._client, run_id, tags)


@contextmanager
def stage_run(
    stage: str, settings: Settings, reads: Sequence[Path | str] = (), makes: Sequence[Path | str] = ()
) -> Iterator[StageRun]:
    """The run of a stage, as a child of the run of the pipeline execution that it belongs to.

    Args:
        stage: its name in dvc.yaml.
        settings: all settings; they are logged on the parent.
        reads: inputs, files or folders. Each is hashed at the start (tag read.<path>); tag made_by.<path> is the ID of the
            run that made it, if one is known.
        makes: outputs, hashed at the end if the stage succeeds (tag made.<path>).

    Raises:
        UserError: the tracking store cannot be used. What the stage had written by then stays.
    """
    versions.require_recorded(paths.VERSIONS)
    client, experiment = store.connect()
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # `connect` has configured MLflow

    _end_killed_runs(client, experiment)
    origin = _origin()
    parent_id = _parent(client, experiment, stage, settings, origin)
    tags = {"mlflow.parentRunId": parent_id, "stage": stage, **processes.tags(), **origin}
    run_id = client.create_run(experiment, tags=tags, run_name=stage).info.run_id
    monitor = SystemMetricsMonitor(run_id, sampling_interval=SAMPLING_SECONDS, tracking_uri=client.uri)
    try:
        makers = _log_lineage(client, experiment, run_id, parent_id, reads)
        monitor.start()
        yield StageRun(client, run_id, parent_id, makers)
        monitor.finish()
        _set_tags(client, run_id, {f"made.{path}": sha256 for path, sha256 in _hashes(makes).items()})
        client.set_terminated(run_id, "FINISHED")
        if client.get_run(parent_id).info.status == "RUNNING":  # no stage of this execution failed before
            client.set_terminated(parent_id, "FINISHED")
    except BaseException as error:
        monitor.finish()
        with suppress(UserError):  # an error of the store must not hide why the stage itself failed
            for one in (run_id, parent_id):
                client.set_terminated(one, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def _end_killed_runs(client: store.Client, experiment: str) -> None:
    """End the runs of this user on this machine whose process no longer exists."""
    ours = f"attributes.status = 'RUNNING' and tags.`{processes.OWNER}` = '{processes.owner()}'"
    for run in store.paginate(client.search_runs, [experiment], ours):
        with suppress(UserError):  # a user has deleted it
            # read again: since the search, its process may have ended it, or another stage of its execution may have begun
            if _was_killed(run) and _was_killed(client.get_run(run.info.run_id)):
                client.set_terminated(run.info.run_id, "KILLED")


def _was_killed(run: Any) -> bool:
    return run.info.status == "RUNNING" and processes.has_ended(run.data.tags)


def _parent(client: store.Client, experiment: str, stage: str, settings: Settings, origin: Mapping[str, str]) -> str:
    """The ID of the run of this pipeline execution, set to running unless one of its stages has failed.

    It has the tags of the stage's process too: a kill before the stage's run is created, or after it has ended, leaves only
    the parent running.
    """
    execution = _execution_id()
    found = client.search_runs([experiment], f"tags.execution = '{execution}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
        if found[0].info.status == "FINISHED":
            _set_tags(client, run_id, processes.tags())
            client.update_run(run_id, status="RUNNING")
        return run_id
    tags = {"execution": execution, **processes.tags(), **origin}
    run_id = client.create_run(experiment, tags=tags, run_name=_parent_name(stage, origin)).info.run_id
    _log_settings(client, run_id, settings)
    return run_id


def _execution_id() -> str:
    """The ID of the pipeline execution that this stage belongs to; a stage run by hand is an execution of its own.

    DVC passes no such ID to its stages, but all stages of one execution descend from one DVC process.
    """
    if "DVC_STAGE" not in os.environ:
        return uuid.uuid4().hex
    ancestors = [*psutil.Process().parents(), psutil.Process()]
    dvc = next(filter(_is_dvc, ancestors), ancestors[0])  # without one, the program that called DVC's Python API
    name = os.environ.get("DVC_EXP_NAME", "")  # that program may run several experiments
    return hashlib.sha256(f"{processes.owner()} {processes.name_of(dvc)} {name}".encode()).hexdigest()


def _is_dvc(process: psutil.Process) -> bool:
    """Whether a process is `dvc ...` or `python -m dvc ...`."""
    with suppress(psutil.Error):  # the process has ended, or belongs to another user
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])
    return False


def _origin() -> dict[str, str]:
    """Tags for the user, the commit and the DVC experiment."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    commit = _git("rev-parse", "HEAD")
    if commit:
        # every execution rewrites these; they are not part of the code
        results = [f":(exclude){path}" for path in ("dvc.lock", paths.METRICS.as_posix())]
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *results)
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}
    for tag, variable in (("dvc.experiment", "DVC_EXP_NAME"), ("dvc.baseline", "DVC_EXP_BASELINE_REV")):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def commit_of(run_id: str) -> str | None:
    """The commit of the code that a run was made with; None if it is not on record."""
    client, _ = store.connect()
    return client.get_run(run_id).data.tags.get("mlflow.source.git.commit")


def _parent_name(stage: str, origin: Mapping[str, str]) -> str:
    """The name of the DVC experiment, or the command with the commit ("+" if changed) and the time."""
    command = "repro" if "DVC_STAGE" in os.environ else f"{stage} by hand"
    commit = origin.get("mlflow.source.git.commit", "")[:7] + ("+" if origin.get("git.dirty") == "true" else "")
    return origin.get("dvc.experiment", f"{command} {commit} {datetime.now():%Y-%m-%d %H:%M}")


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _hashes(files_or_folders: Sequence[Path | str]) -> dict[str, str]:
    """{path: sha256} of those that exist."""
    return {Path(path).as_posix(): files.sha256_of(path) for path in files_or_folders if Path(path).exists()}


def _log_lineage(
    client: store.Client, experiment: str, run_id: str, parent_id: str, reads: Sequence[Path | str]
) -> dict[str, str]:
    """Tag a run with its inputs and the runs that made them; returns those, {path: run ID}."""
    hashes, makers = _hashes(reads), {}
    for path, sha256 in hashes.items():
        found = client.search_runs([experiment], f"tags.`made.{path}` = '{sha256}'", max_results=1)
        if found:
            makers[path] = found[0].info.run_id
    tags = {f"read.{path}": sha256 for path, sha256 in hashes.items()}
    tags |= {f"made_by.{path}": maker for path, maker in makers.items()}
    _set_tags(client, run_id, tags)
    split = hashes.get(paths.SPLIT.as_posix())
    if split is not None:
        for one in (run_id, parent_id):
            _set_tags(client, one, {"dataset.sha256": split})
            _log_dataset(client, one, split)
    return makers


def _log_dataset(client: store.Client, run_id: str, sha256: str) -> None:
    """Log the split as the run's dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=paths.SPLIT.name,
        digest=sha256[:32],  # MLflow allows 36 characters; the tag dataset.sha256 has all 64
        source_type="local",
        source=json.dumps({"uri": paths.SPLIT.as_posix()}),
        profile=json.dumps({"num_rows": len(pd.read_csv(paths.SPLIT))}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "faces")])])


def _log_metrics(client: store.Client, run_id: str, metrics: Mapping[str, float], step: int | None) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(key, float(value), now, step or 0) for key, value in metrics.items()])


def _log_settings(client: store.Client, run_id: str, settings: Settings) -> None:
    """All settings as parameters, and the main ones as the run's description."""
    from mlflow.entities import Param

    texts = settings_module.as_texts(settings_module.flatten(settings))
    client.log_batch(run_id, params=[Param(key, text) for key, text in texts.items()])
    _set_tags(client, run_id, {"mlflow.note.content": f"{settings_module.describe(settings)}, seed {settings.seed}"})


def _set_tags(client: store.Client, run_id: str, tags: Mapping[str, object]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
