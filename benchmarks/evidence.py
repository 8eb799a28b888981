"""Record the results of this workspace: one row per test, with the settings, the commit and the hardware that made them.

    python -m benchmarks.evidence results/faces140k.csv

Run it after `dvc repro` or after an experiment. It appends to the file. Rows of the same settings, seed and commit replace earlier ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.harness import hardware
from dfganext import files, paths, settings
from dfganext.errors import UserError
from dfganext.evaluation import selective
from dfganext.report import evidence

CODE = ("src", "stages", "dvc.yaml", "params.yaml", "requirements.lock")
"""What determines the results besides the data; the commit recorded is the last that changed one of them."""

RUN = ["settings_sha256", "seed", "commit"]
"""Columns that identify what made a row."""


def rows_of(workspace: Path) -> pd.DataFrame:
    """The rows of a workspace in which `dvc repro` ran. UserError if a result is missing.

    Columns: data, architecture, weights, size, loss, settings (those that differ from params.yaml at HEAD), test; images, accuracy
    and ROC AUC with their 95 % intervals, fakes_found and real_called_fake (shares), unsure, novel and decided_accuracy;
    seed, settings_sha256, commit and hardware.
    """
    return described(workspace, [_test_split(workspace), *_degraded(workspace), *_external(workspace)])


def require_current(workspace: Path, *stages: str) -> None:
    """UserError if results of these stages are not those of the workspace's sources, settings and data."""
    done = subprocess.run(["dvc", "status", "--json", *stages], cwd=workspace, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`dvc status` failed ({done.stderr.strip()}): run in a clone of the repository.")
    changed = json.loads(done.stdout)
    if changed:
        raise UserError(
            f"The results of {', '.join(changed)} are out of date: run `dvc repro {' '.join(stages)}` first."
        )


def described(workspace: Path, measured: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of measurements, with the data and the settings before them, and with the seed, the commit and the hardware after."""
    chosen = settings.load_settings(workspace / paths.PARAMS)
    network = chosen.convnext
    before = {
        "data": chosen.report.data or f"{chosen.download.source}, {files.sha256_of(workspace / paths.SPLIT)[:8]}",
        "architecture": network.architecture,
        "weights": Path(network.weights).name,
        "size": network.size,
        "loss": chosen.loss,
        "settings": _changed(workspace, chosen),
    }
    flat = {key: value for key, value in settings.flatten(chosen).items() if not key.startswith("machine.")}
    flat.pop("seed")
    after = {
        "seed": chosen.seed,
        "settings_sha256": hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12],
        "commit": _git(workspace, "log", "-1", "--abbrev=12", "--format=%h", "--", *CODE),
        "hardware": hardware(),
    }
    return pd.DataFrame([{**before, **one, **after} for one in measured])


def record(file: Path, rows: pd.DataFrame, *names: str) -> None:
    """Add rows to a CSV file, in place of rows of the same run with the same values in the columns `names`."""
    earlier = pd.read_csv(file, dtype={"commit": str, "seeds": str}) if file.is_file() else rows.iloc[:0]
    both = pd.concat([earlier, rows.astype({"commit": str})]) if len(earlier) else rows
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(file, both.drop_duplicates([*RUN, *names], keep="last"))


def _test_split(workspace: Path) -> dict[str, Any]:
    found = evidence.read(workspace / paths.EVALUATE_METRICS)["convnext"]
    predictions = evidence.read(workspace / paths.PREDICTIONS)
    called_fake = predictions.predicted == "fake"
    rates = (called_fake[predictions.label == label].mean() for label in ("fake", "real"))
    return _row("test split", found, *rates)


def _degraded(workspace: Path) -> list[dict[str, Any]]:
    table = evidence.read(workspace / paths.ROBUSTNESS)
    columns = ["images", "accuracy", "accuracy_low", "accuracy_high", "roc_auc", "roc_auc_low", "roc_auc_high"]
    columns += selective.COLUMNS
    return [
        {
            "test": f"test split, {row['transform']} {row['strength']:g}",
            **{name: row[name] for name in columns},
            "fakes_found": row["fake_recall"],
            "real_called_fake": 1 - row["real_recall"],
        }
        for row in table.to_dict("records")
        if row["transform"] != "none"
    ]


def _external(workspace: Path) -> list[dict[str, Any]]:
    return [
        _row(name, found, found["true_positive_rate"], found["false_positive_rate"])
        for name, found in evidence.read(workspace / paths.EXTERNAL_METRICS).items()
    ]


def _row(test: str, found: dict[str, Any], fakes_found: float | None, real_called_fake: float | None) -> dict[str, Any]:
    """The row of a test whose metrics, in JSON, have intervals and decisions."""
    row = {"test": test, "images": found["images"]}
    for name in ("accuracy", "roc_auc"):
        low, high = found["intervals"][name] or (None, None)
        row |= {name: found[name], f"{name}_low": low, f"{name}_high": high}
    row |= {"fakes_found": fakes_found, "real_called_fake": real_called_fake}
    return row | selective.columns(found["decisions"])


def _changed(workspace: Path, chosen: settings.Settings) -> str:
    """The settings that differ from those committed, but for the seed."""
    committed = settings.from_mapping(yaml.safe_load(_git(workspace, "show", f"HEAD:{paths.PARAMS}")))
    before, after = (settings.as_texts(settings.flatten(one)) for one in (committed, chosen))
    for file in ("convnext.weights", "convnext.teacher.weights"):  # only the name: its folder is this machine's
        after[file] = Path(after[file]).name
    ignored = ("seed", "machine.")
    names = [name for name in after if after[name] != before[name] and not name.startswith(ignored)]
    return "; ".join(f"{name}={after[name]}" for name in names)


def _git(workspace: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=workspace, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"`git {' '.join(arguments)}` failed ({done.stderr.strip()}): run in a clone of the repository."
        )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the results of this workspace.")
    parser.add_argument("file", type=Path, help="a CSV file, for example results/faces140k.csv")
    options = parser.parse_args()
    try:
        require_current(Path(), "evaluate", "robustness", "external")
        rows = rows_of(Path())
        record(options.file, rows, "test")
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{options.file}: {len(rows)} tests of seed {rows.seed[0]}, commit {rows.commit[0]}")


if __name__ == "__main__":
    main()
