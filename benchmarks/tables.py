"""Record the tables of this workspace's page: Table I, Table II, the architectures, and what the paper's claims are worth here.

    python -m benchmarks.tables results/faces140k-tables.csv
    python -m benchmarks.tables results/faces140k-tables.csv --only I architectures

Run it after `make table1`, `make architectures` or `make report`. It appends to the file. Rows of the same settings, seed and commit
replace earlier ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.evidence import described, record, require_current
from dfganext import paths
from dfganext.errors import UserError
from dfganext.report import architectures, evidence, table1, verdicts
from dfganext.report.evidence import Evidence, interval_at_half
from dfganext.report.table1 import Record, Row, compare
from dfganext.settings import Settings, load_settings
from dfganext.tracking import lineage

Values = Iterator[dict[str, Any]]
"""Rows of the file, with some of COLUMNS."""

COLUMNS = ("table", "row", "measure", "value", "low", "high", "seeds", "text")
"""low and high: 95 % interval of the value."""


def accuracies(rows: Sequence[Row]) -> Values:
    """Of the rows of a table that have evaluations."""
    for row in rows:
        if row.records:
            name = {"row": row.key, "seeds": " ".join(map(str, row.seeds)), "text": row.variation}
            low, high = row.interval
            yield name | {"measure": "accuracy", "value": row.mean, "low": low, "high": high}
            if row.std is not None:
                yield name | {"measure": "standard deviation of the accuracy", "value": row.std}
            yield name | {"measure": "ROC AUC", "value": row.roc_auc}


def spectrum(scores: dict[str, Any], predictions: pd.DataFrame) -> Values:
    """Of the baseline; arguments as in metrics/baseline.json and its predictions."""
    name = {"row": "spectrum", "text": "logistic regression on DCT spectra, fake where p_fake > 0.5"}
    low, high = interval_at_half(predictions)
    yield name | {"measure": "accuracy", "value": scores["accuracy_at_half"], "low": low, "high": high}
    low, high = scores["intervals"]["roc_auc"]
    yield name | {"measure": "ROC AUC", "value": scores["roc_auc"], "low": low, "high": high}


def differences(rows: Sequence[Row]) -> Values:
    """Of the first row to each other one, for the first seed that both have."""
    first, *others = rows
    for other in others:
        gap = compare(first, other)
        if gap is not None:
            low, high = gap["interval"]
            yield {
                "row": other.key,
                "measure": f"accuracy of {first.key} minus this one's",
                "value": gap["difference"],
                "low": low,
                "high": high,
                "seeds": str(gap["seed"]),
                "text": f"exact McNemar p = {gap['p']:.3g}",
            }


def comparison(rows: Sequence[Row]) -> Values:
    """Accuracies of the rows of a table, and their differences."""
    yield from accuracies(rows)
    yield from differences(rows)


def densities(scores: dict[str, Any]) -> Values:
    """Of Table II; argument as in metrics/density.json."""
    for protocol in ("paper", "tree", "heldout"):
        for label in ("real", "fake"):
            for measure in ("mean", "std"):
                value = scores[protocol][label][measure]
                yield {"row": f"{protocol}, {label}", "measure": f"{measure} of the log density", "value": value}
    yield {"row": "paper", "measure": "lone point", "value": scores["paper"]["lone_point"]}
    low, high = scores["heldout"]["roc_auc_interval"]
    auc = {"row": "heldout", "measure": "ROC AUC of lower density means fake", "value": scores["heldout"]["roc_auc"]}
    yield auc | {"low": low, "high": high}


def claims(found: Evidence) -> Values:
    """The verdicts, as the measure."""
    for one in verdicts.all_claims(found):
        yield {"row": one.letter, "measure": one.verdict, "text": f"{one.effect}. {one.because}"}


class Table(NamedTuple):
    """A table: the stages whose results it needs, and its values from the settings and the recorded evaluations."""

    stages: tuple[str, ...]
    values: Callable[[Settings, list[Record]], Values]


def _table1(settings: Settings, records: list[Record]) -> Values:
    yield from comparison(table1.collect(records, settings))
    yield from spectrum(evidence.read(paths.BASELINE_METRICS), evidence.read(paths.BASELINE / "predictions.csv"))


TABLES = {
    "I": Table(("baseline",), _table1),
    "II": Table(("density",), lambda settings, records: densities(evidence.read(paths.DENSITY_METRICS))),
    "architectures": Table(
        ("subsample",), lambda settings, records: comparison(architectures.collect(records, settings))
    ),
    "claims": Table(("report",), lambda settings, records: claims(evidence.load(settings, records))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the tables of this workspace's page.")
    parser.add_argument("file", type=Path, help="a CSV file, for example results/faces140k-tables.csv")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="these tables (all)")
    options = parser.parse_args()
    try:
        require_current(Path(), *(stage for name in options.only for stage in TABLES[name].stages))
        settings, records = load_settings(), lineage.evaluations(paths.SPLIT)
        values = [
            dict.fromkeys(COLUMNS) | {"table": name} | one
            for name in options.only
            for one in TABLES[name].values(settings, records)
        ]
        record(options.file, described(Path(), values), "table", "row", "measure")
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{options.file}: {len(values)} values of {', '.join(options.only)}")


if __name__ == "__main__":
    main()
