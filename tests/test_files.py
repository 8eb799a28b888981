"""Tables: the same content is the same bytes, and whatever is in them can be read back."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from dfganext import files

TEXTS = ["plain", "a\rb", 'a "quoted", text', "a\r\nb", "two\nlines", "\r", "\u00e9", ""]


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "number": range(len(TEXTS)), "share": np.arange(len(TEXTS)) / 8})


@pytest.mark.parametrize("rows", [slice(None), slice(1, 2), slice(3, 6)])
def test_what_is_written_reads_back(table, tmp_path, rows):
    table = table[rows].reset_index(drop=True)
    files.write_table(tmp_path / "below/t.csv", table)
    read = pd.read_csv(tmp_path / "below/t.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    with (tmp_path / "below/t.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == list(table.text)


@pytest.mark.parametrize("columns", [["text", "number", "share"], ["number"], ["share", "missing"], []])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_without_carriage_returns_the_bytes_are_those_of_pandas(table, tmp_path, columns, count):
    table = table[~table.text.str.contains("\r")].assign(missing=[None, "x", None, np.nan, 1])
    table = table[columns][:count]
    expected = io.StringIO()
    table.to_csv(expected, index=False, lineterminator="\n")
    files.write_table(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_bytes() == expected.getvalue().encode()
