"""Servers that tests start: PostgreSQL and MLflow."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import answers, free_port

START_SECONDS = 60
"""A server that does not answer after this time has failed."""

SQL = """
CREATE USER mlflow PASSWORD 'secret';
CREATE DATABASE mlflow OWNER mlflow;
"""


def postgresql_programs() -> Path | None:
    """The folder of initdb and pg_isready, which on Debian is not on the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    return next((folder for folder in reversed(folders) if (folder / "initdb").is_file()), None)


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a new PostgreSQL server on a free port; yields the URI of an empty database."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install 'df-ganext[server]'")
    # PostgreSQL refuses to run as root
    as_other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    # not in tmp_path, which other users cannot enter
    with tempfile.TemporaryDirectory(prefix="postgresql-") as temporary:
        folder, port = Path(temporary), free_port()
        (folder / "password").write_text("postgres")
        if as_other:
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")

        def call(*command: str | Path, **options) -> None:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=START_SECONDS, **options)

        data, server = folder / "data", f"127.0.0.1:{port}"
        sign_in = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        call(*as_other, programs / "initdb", data, *sign_in, "--encoding=UTF8", "--locale=C", "--no-sync")
        address = [
            f"--port={port}",
            "--listen-addresses=127.0.0.1",
            f"--unix_socket_directories={folder}",
            "--fsync=off",
        ]
        with running(*as_other, programs / "postgres", "-D", data, *address, folder=folder):
            wait_until(lambda: is_ready(programs, port), folder)
            psql = [
                "--no-psqlrc",
                "--set=ON_ERROR_STOP=1",
                f"--dbname=postgresql://postgres:postgres@{server}/postgres",
            ]
            call(programs / "psql", *psql, input=SQL.encode())
            yield f"postgresql+psycopg2://mlflow:secret@{server}/mlflow"


@contextmanager
def mlflow_server(folder: Path, database: str, port: int) -> Iterator[str]:
    """Run `mlflow server` with this database and its artifacts in `folder`; yields its URI."""
    command = ["-m", "mlflow", "server", "--backend-store-uri", database, "--port", str(port), "--workers", "1"]
    artifacts = ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(sys.executable, *command, *artifacts, folder=folder, env=os.environ | quiet):
        uri = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{uri}/health"), folder)
        yield uri


GUARD = """
import os, signal, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.stdin.read()
os.killpg(0, signal.SIGINT)
try:
    process.wait(20)
finally:
    os.killpg(0, signal.SIGKILL)
"""
"""Runs a command until stdin closes, which also happens when pytest is killed; then ends it and its child processes."""


@contextmanager
def running(*command: str | Path, folder: Path, **options) -> Iterator[None]:
    """Run a server; it and its child processes end with the context."""
    with (folder / "server.log").open("w") as log:
        guard = [sys.executable, "-c", GUARD, *command]
        process = subprocess.Popen(
            guard, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, **options
        )
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()


def wait_until(ready: Callable[[], bool], folder: Path) -> None:
    """Fails with the server's log after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert time.monotonic() < deadline, (folder / "server.log").read_text()
        time.sleep(0.1)


def is_ready(programs: Path, port: int) -> bool:
    command = [programs / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
    return subprocess.run(command).returncode == 0
