"""Run code in several processes at the same time, without waiting for each to import MLflow and PyTorch."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

START_METHOD = "forkserver"
"""Python has one fork server per process, so all tests share it and what it has imported."""

_CONTEXT = multiprocessing.get_context(START_METHOD)
_CONTEXT.set_forkserver_preload(
    ["mlflow", "dfganext.tracking.promotion", "dfganext.tracking.runs", "dfganext.training.classifier"]
)


def run_at_once(
    code: str,
    arguments: Sequence[Sequence[str]],
    logs: Path,
    folders: Sequence[Path] = (),
    environments: Sequence[Mapping[str, str]] = (),
) -> list[str]:
    """Run the code in one process per list of arguments (its sys.argv); all must succeed.

    Args:
        logs: a folder for what they print.
        folders: their working directories; this process's, unless given.
        environments: variables that each has besides this process's.

    Returns:
        What each process printed on stdout and stderr.
    """
    files = [logs / f"output {index}.log" for index in range(len(arguments))]
    folders = folders or [Path.cwd()] * len(arguments)
    environments = environments or [{}] * len(arguments)
    calls = zip(arguments, folders, environments, files, strict=True)
    processes = [
        _CONTEXT.Process(target=_run, args=(code, list(words), str(folder), {**os.environ, **variables}, str(file)))
        for words, folder, variables, file in calls
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    printed = [file.read_text() for file in files]
    assert [process.exitcode for process in processes] == [0] * len(processes), printed
    return printed


def _run(code: str, arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    print_to(log)
    os.chdir(folder)
    os.environ.clear()  # the fork server's is that of the first test
    os.environ.update(environment)
    sys.argv = ["code", *arguments]
    exec(code, {"__name__": "__main__"})


def print_to(log: str) -> None:
    """Write what this process prints, on stdout and stderr, to a file; the fork server's are those of the first test."""
    with Path(log).open("w") as stream:
        for own in (sys.stdout, sys.stderr):
            os.dup2(stream.fileno(), own.fileno())
