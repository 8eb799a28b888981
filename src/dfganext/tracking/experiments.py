"""`make table1`: run what Table I still lacks, as DVC experiments through the queue.

python -m dfganext.tracking.experiments --seeds 5
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import uuid

from dfganext import paths, pipeline, settings
from dfganext.errors import UserError
from dfganext.report import table1
from dfganext.tracking import lineage

POLL_SECONDS = 5.0


def main() -> None:
    arguments = _arguments()
    chosen = settings.load_settings()
    _dvc("repro", "--quiet", "check", "subsample")
    lacking = table1.experiments(lineage.evaluations(paths.SPLIT), chosen, arguments.seeds)
    if not lacking:
        print(f"Table I has all rows with {arguments.seeds} seeds.")
        return
    names = [_queue(values) for values in lacking]
    _dvc("queue", "start")
    _wait(names)
    left = table1.experiments(lineage.evaluations(paths.SPLIT), chosen, arguments.seeds)
    if left:
        raise UserError(
            f"{len(left)} rows of Table I are still missing from MLflow although their experiments ended well: DVC restored "
            "results from its cache that this MLflow store has no record of; run `dvc exp run --force` with "
            + " ".join(f"-S {key}={value}" for key, value in left[0].items())
            + " evaluate."
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dfganext.tracking.experiments", description="Run what Table I still lacks."
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds each row is to have (1)")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1")
    return arguments


def _queue(values: dict[str, object]) -> str:
    """Put one experiment into DVC's queue, up to the evaluation; returns its name."""
    name = f"table1-{values['loss']}-seed{values['seed']}-{uuid.uuid4().hex[:6]}"
    changes = [word for key, value in values.items() for word in ("-S", f"{key}={value}")]
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()), flush=True)
    _dvc("exp", "run", "--quiet", "--queue", "--name", name, *changes, "evaluate")
    return name


def _wait(names: list[str]) -> None:
    """Until DVC's queue has done all of these. UserError names the first that failed, with the end of its log."""
    open_names = list(names)
    while open_names:
        time.sleep(POLL_SECONDS)
        status = _status()
        for name in list(open_names):
            if status.get(name) in ("Queued", "Running"):
                continue
            open_names.remove(name)
            if status.get(name) != "Success":
                log = _dvc("queue", "logs", name, check=False).strip().splitlines()[-15:]
                raise UserError(
                    f"experiment {name} failed; `dvc queue logs {name}` has all it said, which ends: " + " | ".join(log)
                )
            print(f"{name} done, {len(open_names)} to go", flush=True)


def _status() -> dict[str, str]:
    """Experiments in the queue: {name: Queued, Running, Success or Failed}."""
    rows = [line.split() for line in _dvc("queue", "status").splitlines()]
    return {row[1]: row[-1] for row in rows if len(row) > 2 and row[1].startswith("table1-")}


def _dvc(*words: str, check: bool = True) -> str:
    # a file, not a pipe: the queue's workers inherit what `dvc` writes to, and reading a pipe would wait for their end
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        code = subprocess.run(["dvc", *words], stdout=output, stderr=subprocess.STDOUT).returncode
        output.seek(0)
        text = output.read()
    if check and code:
        raise UserError(f"`dvc {' '.join(words)}` failed: {text.strip()}")
    return text


if __name__ == "__main__":
    pipeline.run(main)
