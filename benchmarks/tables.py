"""Record the tables of this workspace's page: Table I, Table II, the architectures, and what the paper's claims are worth here.

    python -m benchmarks.tables results/faces140k-tables.csv

Run it where reports/index.html is up to date: after `dvc repro`, `make table1` or `make architectures`. It appends to the file.
Rows of the same settings, seed and commit replace earlier ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import IDENTITY, described, record, require_current
from dfganext import paths
from dfganext.errors import UserError
from dfganext.evaluation import intervals
from dfganext.report import evidence, verdicts
from dfganext.report.evidence import Evidence
from dfganext.report.table1 import Row, compare, groups_of, is_fake
from dfganext.settings import load_settings
from dfganext.tracking import lineage


def measurements(found: Evidence) -> list[dict[str, Any]]:
    """Columns: table, row, measure, value with its 95 % interval (low, high), seeds, and text."""
    rows = [
        *_accuracies("I", found.rows),
        *_spectrum(found),
        *_accuracies("architectures", found.architectures),
        *_differences(found.architectures),
        *_densities(found.density),
        *_claims(found),
    ]
    columns = dict.fromkeys(("table", "row", "measure", "value", "low", "high", "seeds", "text"))
    return [columns | row for row in rows]


def _accuracies(table: str, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row.records:
            name = {"table": table, "row": row.key, "seeds": " ".join(map(str, row.seeds)), "text": row.variation}
            low, high = row.interval
            yield name | {"measure": "accuracy", "value": row.mean, "low": low, "high": high}
            if row.std is not None:
                yield name | {"measure": "standard deviation of the accuracy", "value": row.std}
            yield name | {"measure": "ROC AUC", "value": row.roc_auc}


def _spectrum(found: Evidence) -> Iterator[dict[str, Any]]:
    name = {"table": "I", "row": "spectrum", "text": "logistic regression on DCT spectra, fake where p_fake > 0.5"}
    table = found.baseline_predictions
    low, high = intervals.proportion((table.p_fake > 0.5).to_numpy() == is_fake(table), groups_of(table))
    yield name | {"measure": "accuracy", "value": found.baseline["accuracy_at_half"], "low": low, "high": high}
    low, high = found.baseline["intervals"]["roc_auc"]
    yield name | {"measure": "ROC AUC", "value": found.baseline["roc_auc"], "low": low, "high": high}


def _differences(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    first, *others = rows
    for other in others:
        gap = compare(first, other)
        if gap is not None:
            low, high = gap["interval"]
            yield {
                "table": "architectures",
                "row": other.key,
                "measure": f"accuracy of {first.model} minus this one's",
                "value": gap["difference"],
                "low": low,
                "high": high,
                "seeds": gap["seed"],
                "text": f"exact McNemar p = {gap['p']:.3g}",
            }


def _densities(density: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for protocol in ("paper", "tree", "heldout"):
        for label in ("real", "fake"):
            for measure in ("mean", "std"):
                value = density[protocol][label][measure]
                yield {
                    "table": "II",
                    "row": f"{protocol}, {label}",
                    "measure": f"{measure} of the log density",
                    "value": value,
                }
    low, high = density["heldout"]["roc_auc_interval"]
    name = {"table": "II", "row": "heldout", "measure": "ROC AUC of lower density means fake"}
    yield name | {"value": density["heldout"]["roc_auc"], "low": low, "high": high}
    yield {"table": "II", "row": "paper", "measure": "lone point", "value": density["paper"]["lone_point"]}


def _claims(found: Evidence) -> Iterator[dict[str, Any]]:
    for one in verdicts.all_claims(found):
        yield {"table": "claims", "row": one.letter, "measure": one.verdict, "text": f"{one.effect}. {one.because}"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the tables of this workspace's page.")
    parser.add_argument("file", type=Path, help="a CSV file, for example results/faces140k-tables.csv")
    options = parser.parse_args()
    try:
        require_current(Path(), "evaluate", "density", "report")
        found = evidence.load(load_settings(), lineage.evaluations(paths.SPLIT))
        rows = described(Path(), measurements(found))
        record(options.file, rows, [*IDENTITY[:-1], "table", "row", "measure"])
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{options.file}: {len(rows)} values of {rows['table'].nunique()} tables")


if __name__ == "__main__":
    main()
