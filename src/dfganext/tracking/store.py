"""The MLflow store: its address, a client whose errors are UserErrors, and a lock between processes.

There is one store: sqlite:///<root>/mlflow.db with artifacts under <root>/mlruns, unless MLFLOW_TRACKING_URI names another.
MLflow takes seconds to import, so it is imported only when the first client is made.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from dfganext import pipeline
from dfganext.errors import UserError, one_line
from dfganext.tracking import view

EXPERIMENT = "df-ganext"

_ATTEMPTS = 5

_SQLITE = "sqlite:///"
"""Followed by the path of a database file."""


class StoreError(UserError):
    """The tracking store cannot be used."""


class NotFoundError(UserError):
    """Not found: run, model or alias."""


def paginate(search: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """The results on all pages of a search of MlflowClient with these arguments."""
    page = search(*args, **options)
    found = list(page)
    while page.token:
        page = search(*args, **options, page_token=page.token)
        found += page
    return found


def root() -> Path:
    """The folder of the store: the repository, also when called in the temporary workspace of a DVC experiment."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"])
    cwd = Path.cwd()
    return next((folder for folder in (cwd, *cwd.parents) if (folder / "dvc.yaml").is_file()), cwd)


def tracking_uri() -> str:
    """The address of runs and registered models: MLFLOW_TRACKING_URI, or else the database at the root.

    A relative path in the variable is one at the root too, also in the temporary workspace of a DVC experiment.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    relative = re.fullmatch(rf"{_SQLITE}([^/:?][^?]*)(\?.*)?", given)
    if relative is None:
        return given
    file, options = (root() / relative[1]).as_posix(), relative[2] or ""
    if "?" in file or unquote(file) != file:  # both have a meaning in an address
        raise StoreError(f"{file} cannot be MLflow's database because its path contains ? or %: rename the folder.")
    return f"{_SQLITE}{file}{options}"


def exists() -> bool:
    """Whether the store exists; a server always does, a database file once it has been created."""
    file = _database_file()
    return file is None or file.is_file()


def lock(purpose: str = "setup") -> AbstractContextManager[Any]:
    """A lock that one process of this machine holds at a time. StoreError if the lock file cannot be written."""
    file = f"{_database_file() or root() / 'mlflow.db'}.{purpose}.lock"
    try:
        return FileLock(file).acquire()
    except OSError as error:
        raise _not_writable(file, error.strerror or str(error)) from None


def connect() -> tuple[Client, str]:
    """A client of the store and the ID of its experiment; both are created if missing.

    Raises:
        UserError: the store cannot be used, or its experiment was deleted.
    """
    uri = tracking_uri()
    # MLflow fails when two processes create its database at once; a server has created its own, and a database that can only
    # be read was created before
    with nullcontext() if _is_server(uri) or _is_read_only() else lock():
        client = Client(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT) or _create_experiment(client)
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"The experiment {EXPERIMENT} was deleted in {redact(uri)}: restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`."
        )
    return client, experiment.experiment_id


class Client:
    """MlflowClient whose errors are UserErrors that name the store, with retries where other processes interfere."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        mlflow = import_mlflow()
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)  # MLflow looks up aliases and logged models there, whatever URI the client has
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # set by the call above; `tracking_uri` must not read it
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or uri
        self._client = translate_errors(uri, mlflow.MlflowClient, uri, registry)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(translate_errors, self.uri, getattr(self._client, name))


def import_mlflow() -> Any:
    """The module mlflow, with its telemetry and most of its output off, and few retries for a server that is down."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for each run on a server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # the default waits four minutes
    try:
        import mlflow
    except ImportError:
        raise UserError("MLflow is not installed: pip install 'df-ganext[pipeline]'.") from None
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `translate_errors` says what it would log
    return mlflow


def translate_errors(uri: str, call: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call MLflow for the store at `uri`. Errors become NotFoundError or StoreError; transient ones are retried."""
    attempt = 1
    while True:
        try:
            return call(*args, **options)
        except Exception as error:
            reason = redact(one_line(error))[:300]
            missing_alias = re.search(r"alias \S+ not found", reason)  # its error code is INVALID_PARAMETER_VALUE
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST" or missing_alias:
                raise NotFoundError(f"Not found in {redact(uri)}: {reason}") from error
            if "readonly database" in str(error):
                raise _not_writable(redact(uri).removeprefix(_SQLITE), "it can only be read") from None
            if attempt == _ATTEMPTS or not _is_transient(error):
                raise StoreError(
                    f"The tracking store {redact(uri)} cannot be used ({reason}): start it, correct "
                    "MLFLOW_TRACKING_URI, or unset it to track in mlflow.db; what was written so far is kept."
                ) from error
        time.sleep(attempt)
        attempt += 1


def redact(uri: str) -> str:
    """An address, or a text that contains one, without the user name and password in it."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", uri)


def _not_writable(file: str, reason: str) -> StoreError:
    return StoreError(
        f"The tracking store cannot be used ({file}: {reason}): make its folder writable, or name another store with "
        "MLFLOW_TRACKING_URI."
    )


def _create_experiment(client: Client) -> Any:
    location = None if _is_server(client.uri) else str((root() / "mlruns").resolve())
    try:
        client.create_experiment(EXPERIMENT, artifact_location=location, tags=view.tags(datetime.now()))
    except UserError:
        if client.get_experiment_by_name(EXPERIMENT) is None:  # else another machine has just created it on the server
            raise
    return client.get_experiment_by_name(EXPERIMENT)


def _database_file() -> Path | None:
    uri = tracking_uri()
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def _is_read_only() -> bool:
    file = _database_file()
    return file is not None and file.is_file() and not os.access(file, os.W_OK)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def _is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed: SQLite is busy, or two processes inserted the same row at once."""
    clash = "IntegrityError" in str(error) or "UniqueViolation" in str(error)
    return "database is locked" in str(error) or (clash and getattr(error, "error_code", "") == "BAD_REQUEST")


def main() -> None:
    """Print where the MLflow UI of `make ui` shows the runs."""
    _, experiment = connect()
    print(f"the runs, once the server has started: http://127.0.0.1:5000{view.path(experiment)}")


if __name__ == "__main__":
    pipeline.run(main)
