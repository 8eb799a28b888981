"""The MLflow store: where it is, a client whose failures are sentences, and what several processes must not do at once.

Everything lands in one store: sqlite:///<root>/mlflow.db with artifacts under <root>/mlruns, unless MLFLOW_TRACKING_URI
names another. MLflow takes seconds to import, so it is imported where the first client is made and not before.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from dfganext.errors import UserError

EXPERIMENT = "df-ganext"

_TRIES = 5


class StoreError(UserError):
    """The tracking store cannot be used."""


class NotFoundError(UserError):
    """The tracking store answered that it holds no such thing."""


def paginate(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """All that a search of MLflow's finds; `search` is given the token of the page that it is to return."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


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
def lock(purpose: str = "setup") -> Iterator[None]:
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
    with nullcontext() if _is_server(tracking_uri()) else lock():
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
            f"The experiment {EXPERIMENT} was deleted in {redact(client.uri)}: restore it with "
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
        self._client = translate_errors(uri, lambda: mlflow.MlflowClient(uri, registry))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        @functools.wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            return translate_errors(self.uri, lambda: method(*args, **options))

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


def translate_errors(uri: str, call: Callable[[], Any]) -> Any:
    """The result of a call to the store at `uri`; its failures as NotFoundError or StoreError, each a UserError."""
    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            missing_alias = re.search(r"alias \S+ not found", str(error))  # MLflow's code for it says otherwise
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST" or missing_alias:
                raise NotFoundError(f"{redact(uri)} has no such thing: {_one_line(error)}") from error
            if attempt < _TRIES and _may_pass(error):
                time.sleep(attempt)
                continue
            raise StoreError(
                f"The tracking store {redact(uri)} cannot be used ({_one_line(error)}): start it, correct "
                "MLFLOW_TRACKING_URI, or unset it to track in mlflow.db; what was written so far is kept."
            ) from error
    raise AssertionError("unreachable")


def redact(uri: str) -> str:
    """A store's address, or a text with it, without the password that may be in it."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", uri)


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
    return redact(" ".join(str(error).split()))[:300] or type(error).__name__
