"""Predictions as rows: one per image, for `dfganext predict` and the demo."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from dfganext.data.discovery import printable

if TYPE_CHECKING:  # importing torch takes seconds: `dfganext --help` must not wait for it
    from dfganext.inference.detector import Prediction

Row = dict[str, Any]
"""`COLUMNS`, heatmap where one was written, and stability where it was checked."""

COLUMNS = ("path", "label", "p_fake", "threshold", "decision", "reason", "error")
"""Of the CSV file, and stability where it was checked: the copies that change the decision."""


def row_of(path: str, found: Prediction) -> Row:
    """The row of the image file `path`."""
    from dfganext.inference.detector import stability_record

    row: Row = {"path": printable(path)} | {name: getattr(found, name) for name in COLUMNS[1:]}
    return row if found.stability is None else row | {"stability": stability_record(found)}


def changes(row: Row) -> str:
    """The copies of an image that change its decision: jpeg_50 unsure, half_size real."""
    stability = row.get("stability") or {"changes": []}
    return ", ".join(f"{name} {stability[name]['decision']}" for name in stability["changes"])


def csv_writer(stream: TextIO, stability: bool) -> Callable[[Row], object]:
    """Write the header of a CSV file; returns a function that writes a row.

    Args:
        stability: whether there is a column for it.
    """
    columns = (*COLUMNS, "stability") if stability else COLUMNS
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    return lambda row: writer.writerow(row | {"stability": changes(row)})
