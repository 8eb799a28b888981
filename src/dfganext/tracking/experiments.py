"""`make table1` and `make architectures`: run the experiments that a table still lacks, through DVC's queue.

python -m dfganext.tracking.experiments --seeds 5
python -m dfganext.tracking.experiments --architectures --seeds 5
"""

from __future__ import annotations

import argparse
import subprocess
import uuid

from dfganext import paths, pipeline
from dfganext.errors import UserError
from dfganext.report import architectures, table1
from dfganext.settings import Convnext, load_settings, weights_file
from dfganext.tracking import lineage


def main() -> None:
    """Queue the missing experiments, wait for them, and check that MLflow has their results."""
    parser = argparse.ArgumentParser(description="Run the experiments that Table I, or the comparison, still lacks.")
    parser.add_argument("--architectures", action="store_true", help="those of the setting architectures")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds per row (1)")
    options = parser.parse_args()
    seeds = options.seeds
    if seeds < 1:
        parser.error("--seeds must be at least 1")
    settings = load_settings()
    weights = settings.convnext.weights
    if options.architectures and weights_file(weights) is not None:
        raise UserError(
            f"convnext.weights: {weights} holds the weights of one architecture; set it to imagenet or random to compare several."
        )
    table, name = (architectures, "the comparison of architectures") if options.architectures else (table1, "Table I")
    _dvc("repro", "--quiet", "check", "subsample")
    missing = table.experiments(lineage.evaluations(paths.SPLIT), settings, seeds)
    if missing:
        _require_absolute_paths(settings.convnext)
        for values in missing:
            _queue(values)
        _dvc("exp", "run", "--run-all")  # prints their logs, and exits with 0 also where one failed
        missing = table.experiments(lineage.evaluations(paths.SPLIT), settings, seeds)
    if missing:
        changes = " ".join(f"-S {key}={value}" for key, value in missing[0].items())
        raise UserError(
            f"{len(missing)} rows of {name} are still missing from MLflow. If an experiment failed, `dvc queue status` names it "
            "and `dvc queue logs` with this name prints its log. Otherwise DVC restored results from its cache, but this MLflow "
            f"store has no record of them: run `dvc exp run --force {changes} evaluate`."
        )
    print(f"{name[0].upper()}{name[1:]} has all rows with {seeds} seeds.")


def _require_absolute_paths(settings: Convnext) -> None:
    """UserError if an experiment, in a folder of its own, would not find a file of weights."""
    for setting, weights in (("weights", settings.weights), ("teacher.weights", settings.teacher.weights)):
        file = weights_file(weights)
        if file is not None and not file.is_absolute():
            raise UserError(
                f"convnext.{setting}: queued experiments run in folders of their own; give the absolute path, {file.resolve()}."
            )


def _queue(values: dict[str, object]) -> None:
    """Add an experiment, up to the evaluation, to DVC's queue."""
    varied = values.get(architectures.SETTING) or f"table1-{values['loss']}"
    name = f"{varied}-seed{values['seed']}-{uuid.uuid4().hex[:6]}".replace(".", "-")
    changes = [word for key, value in values.items() for word in ("-S", f"{key}={value}")]
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()), flush=True)
    _dvc("exp", "run", "--quiet", "--queue", "--name", name, *changes, "evaluate")


def _dvc(*arguments: str) -> None:
    if subprocess.run(["dvc", *arguments]).returncode:
        raise UserError(f"`dvc {' '.join(arguments)}` failed, for the reason above.")


if __name__ == "__main__":
    pipeline.run(main)
