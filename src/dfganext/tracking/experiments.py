"""`make table1`: run the experiments that Table I still lacks, through DVC's queue.

python -m dfganext.tracking.experiments --seeds 5
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import uuid

from dfganext import paths, pipeline
from dfganext.errors import UserError
from dfganext.report import table1
from dfganext.settings import load_settings
from dfganext.tracking import lineage

POLL_SECONDS = 5.0


def main() -> None:
    """Queue the missing experiments, wait for them, and check that MLflow has their results."""
    seeds = _parse_arguments().seeds
    settings = load_settings()
    _dvc("repro", "--quiet", "check", "subsample")
    missing = table1.experiments(lineage.evaluations(paths.SPLIT), settings, seeds)
    if not missing:
        print(f"Table I has all rows with {seeds} seeds.")
        return
    names = [_queue(values) for values in missing]
    _dvc("queue", "start")
    _wait(names)
    still_missing = table1.experiments(lineage.evaluations(paths.SPLIT), settings, seeds)
    if still_missing:
        changes = " ".join(f"-S {key}={value}" for key, value in still_missing[0].items())
        raise UserError(
            f"{len(still_missing)} rows of Table I are still missing from MLflow although their experiments succeeded: DVC "
            "restored results from its cache, but this MLflow store has no record of them; run `dvc exp run --force` with "
            f"{changes} evaluate."
        )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dfganext.tracking.experiments", description="Run the experiments that Table I still lacks."
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds per row (1)")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1")
    return arguments


def _queue(values: dict[str, object]) -> str:
    """Add an experiment, up to the evaluation, to DVC's queue; returns its name."""
    name = f"table1-{values['loss']}-seed{values['seed']}-{uuid.uuid4().hex[:6]}"
    changes = [word for key, value in values.items() for word in ("-S", f"{key}={value}")]
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()), flush=True)
    _dvc("exp", "run", "--quiet", "--queue", "--name", name, *changes, "evaluate")
    return name


def _wait(names: list[str]) -> None:
    """Wait until DVC has run these experiments. UserError with the name and the end of the log of the first that failed."""
    pending = list(names)
    while pending:
        time.sleep(POLL_SECONDS)
        states = _states()
        if not states.keys() >= set(pending):  # DVC lists a task neither as running nor as queued while it starts
            states = _states()
        for name in [name for name in pending if states.get(name) not in ("Queued", "Running")]:
            if states.get(name) != "Success":
                log = _dvc("queue", "logs", name, check=False).strip().splitlines()[-15:]
                raise UserError(
                    f"experiment {name} failed; `dvc queue logs {name}` prints its log, which ends: " + " | ".join(log)
                )
            pending.remove(name)
            print(f"{name} done, {len(pending)} left", flush=True)


def _states() -> dict[str, str]:
    """The state of each experiment in DVC's queue: {name: "Queued", "Running", "Success" or "Failed"}."""
    from dvc.repo import Repo

    with Repo() as repo:
        return {task["name"]: task["status"] for task in repo.experiments.celery_queue.status() if task["name"]}


def _dvc(*arguments: str, check: bool = True) -> str:
    """The output of a dvc command. UserError if it fails and `check` is set."""
    # to a file: the queue's workers inherit the output of `dvc`, and reading a pipe would wait until they end
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        code = subprocess.run(["dvc", *arguments], stdout=output, stderr=subprocess.STDOUT).returncode
        output.seek(0)
        text = output.read()
    if check and code:
        raise UserError(f"`dvc {' '.join(arguments)}` failed: {text.strip()}")
    return text


if __name__ == "__main__":
    pipeline.run(main)
