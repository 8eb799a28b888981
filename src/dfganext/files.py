"""How the workflow writes: parents made, UTF-8, one newline convention, so that the same content is the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON. ValueError for NaN or infinity, which JSON does not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, without its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
