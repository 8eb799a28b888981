"""Tables: the same content is the same bytes, and whatever is in them can be read back."""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest

from dfganext import files

TEXTS = ["plain", "a\rb", 'a "quoted", text', "a\r\nb", "two\nlines", "\r", "\u00e9", ""]


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "number": range(len(TEXTS)), "share": np.arange(len(TEXTS)) / 8})


@pytest.mark.parametrize("rows", [slice(None), slice(1, 2), slice(3, 6)])
def test_written_tables_read_back(table, tmp_path, rows):
    table = table[rows].reset_index(drop=True)
    files.write_table(tmp_path / "below/t.csv", table)
    read = pd.read_csv(tmp_path / "below/t.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    with (tmp_path / "below/t.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == list(table.text)


@pytest.mark.parametrize("columns", [["text", "number", "share"], ["number"], ["share", "missing"], []])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_tables_without_carriage_returns_have_the_bytes_of_pandas(table, tmp_path, columns, count):
    table = table[~table.text.str.contains("\r")].assign(missing=[None, "x", None, np.nan, 1])
    table = table[columns][:count]
    expected = io.StringIO()
    table.to_csv(expected, index=False, lineterminator="\n")
    files.write_table(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_bytes() == expected.getvalue().encode()


def test_numbers_have_six_significant_digits(tmp_path):
    values = {"a": 0.123456789, "b": [1234567.89, 3], "c": {"d": -1e-9 / 3}, "e": True, "f": "0.123456789"}
    files.write_json(tmp_path / "v.json", values)
    expected = {"a": 0.123457, "b": [1234570.0, 3], "c": {"d": -3.33333e-10}, "e": True, "f": "0.123456789"}
    assert json.loads((tmp_path / "v.json").read_text()) == expected
    files.write_json(tmp_path / "v.json", values, files.EXACT)
    assert json.loads((tmp_path / "v.json").read_text()) == values
    table = pd.DataFrame({"x": np.array([1 / 3, np.nan, np.inf]), "y": np.float32([1 / 3, 2, 3]), "n": [1234567, 2, 3]})
    files.write_table(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text() == "x,y,n\n0.333333,0.333333,1234567\n,2.0,2\ninf,3.0,3\n"


@pytest.mark.parametrize("change", [1 + 1e-12, 1 - 3e-11])
def test_values_that_differ_in_later_digits_give_the_same_bytes(tmp_path, change):
    values = np.random.default_rng(0).normal(size=200)
    for name, factor in (("one", 1.0), ("other", change)):
        files.write_json(tmp_path / name, list(values * factor))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
