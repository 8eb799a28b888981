"""Run code in several processes at the same time, without waiting for each to import MLflow and PyTorch."""

import multiprocessing
import os
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mlflow", "dfganext.tracking.promotion", "dfganext.tracking.runs"])


def run_at_once(code: str, arguments: list[list[str]], logs: Path) -> list[str]:
    """Run the code in one process per list of arguments (its sys.argv); all must succeed.

    Returns:
        What each process wrote to stderr.
    """
    files = [logs / f"stderr {index}.log" for index in range(len(arguments))]
    processes = [
        _CONTEXT.Process(target=_run, args=(code, words, str(Path.cwd()), dict(os.environ), str(file)))
        for words, file in zip(arguments, files, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [file.read_text() for file in files]
    assert [process.exitcode for process in processes] == [0] * len(processes), errors
    return errors


def _run(code: str, arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    with Path(log).open("w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    os.chdir(folder)
    os.environ.clear()  # the fork server's is that of the first test
    os.environ.update(environment)
    sys.argv = ["code", *arguments]
    exec(code, {"__name__": "__main__"})
