"""Writes JSON and CSV so that the same content gives the same bytes: UTF-8, \\n as newline, significant digits only.

Digits after the significant ones differ between processors.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Literal

import pandas as pd

DIGITS = 6
"""Significant digits of a computed floating-point number."""
EXACT = 17
"""Digits with which every float reads back unchanged."""


def write_json(path: Path, value: object, digits: int = DIGITS) -> None:
    """Write a value as indented JSON, floats with so many significant digits. ValueError for NaN or infinity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(value, digits), indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_table(path: Path, table: pd.DataFrame, digits: int = DIGITS) -> None:
    """Write a table as CSV, without its index, floats with so many significant digits.

    A table with a carriage return in a text is quoted throughout: before Python 3.13, csv does not quote a text because of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.copy()
    for name in table.columns:
        if table[name].dtype.kind == "f":
            table[name] = [float(f"{value:.{digits}g}") for value in table[name]]
    texts = table.select_dtypes(exclude=["number", "bool"])
    returns = any(texts[name].astype(str).str.contains("\r", regex=False).any() for name in texts)
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    table.to_csv(path, index=False, lineterminator="\n", encoding="utf-8", quoting=quoting)


def _rounded(value: object, digits: int) -> object:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: _rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one, digits) for one in value]
    return value


def sha256_of(path: Path | str) -> str:
    """sha256 of a file, or of a folder: over its sorted lines "<relative path> <sha256>\\n"."""
    path = Path(path)
    if path.is_dir():
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        lines = (f"{name} {sha256_of(file)}\n" for name, file in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
