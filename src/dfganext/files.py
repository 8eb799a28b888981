"""How the workflow writes: parents made, UTF-8, one newline convention, so that the same content is the same bytes."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON. ValueError for NaN or infinity, which JSON does not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, without its index.

    Rows with a carriage return in a text are quoted throughout: before Python 3.13, csv takes it for no reason to quote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = table.select_dtypes(exclude=["number", "bool"])
    quoted = texts.apply(lambda column: column.astype(str).str.contains("\r", regex=False)).any(axis=1).to_numpy(bool)
    starts = np.flatnonzero(quoted[1:] != quoted[:-1]) + 1  # of runs of rows that are quoted alike
    with path.open("w", encoding="utf-8", newline="") as stream:
        table[:0].to_csv(stream, index=False, lineterminator="\n")
        for first, end in pairwise([0, *starts, len(table)]):
            quoting: Literal[0, 1] = csv.QUOTE_ALL if quoted[first:end].any() else csv.QUOTE_MINIMAL
            table[first:end].to_csv(stream, index=False, header=False, lineterminator="\n", quoting=quoting)
