"""The tables of benchmarks/: how they are counted, and that the README quotes what the files say."""

import csv

import pytest

from benchmarks import harness, summary
from benchmarks.harness import Child, Goal, Table
from dfganext import process


def test_a_row_has_medians_ratio_share_and_what_was_reached():
    table = Table("x")
    table.add("a", "time", "s", [1.0, 4.0, 2.0], [6.0, 10.0], 1.5, Goal("ratio", least=4))
    table.add("b", "rate", "1/s", [8.0], [4.0], goal=Goal("ratio", least=3), better="higher")
    table.add("c", "memory", "MiB", [8.0], goal=Goal("ours", most=8))
    table.add("d", "error", "nats", [0.0], goal=Goal("ours", most=1e-6))
    first, second, third, fourth = table.rows
    assert [first[name] for name in ("ours", "ours_low", "ours_high", "rival", "ratio")] == ["2", "1", "4", "8", "4"]
    assert (first["share_of_limit"], first["goal"], first["reached"]) == ("0.75", "ratio >= 4", "yes")
    assert (second["ratio"], second["reached"], second["limit"]) == ("2", "no", "")
    assert (third["goal"], third["reached"], fourth["reached"]) == ("ours <= 8", "yes", "yes")


def test_the_file_is_named_by_hardware_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    table = Table("subject")
    table.add("a", "time", "s", [1.0], [3.0])
    table.write("numpy")
    (file,) = (tmp_path / "results").iterdir()
    assert (
        file.name.startswith(f"subject-{harness.hardware()}-python3.")
        and "-torch2." in file.name
        and "-numpy" in file.name
    )
    with file.open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["ratio"] == "3"


def test_contenders_take_turns():
    order = []
    seconds = harness.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and [len(times) for times in seconds.values()] == [2, 2]


def test_a_child_answers_and_a_failure_is_not_taken_for_an_answer():
    with Child("benchmarks.pictures") as child, pytest.raises(RuntimeError, match="picture failed"):
        child.call("picture", 8, "no seed")
    with Child("dfganext.process", plain=True) as child:
        assert child.call("cores") == process.cores()


def test_the_readme_quotes_the_files(root):
    assert any(summary.results().values())
    assert "\n".join(summary.table()) in (root / "README.md").read_text()
