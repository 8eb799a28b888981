"""The page's tables as rows of a CSV file."""

import pandas as pd
import pytest
from made_up import DENSITY, all_rows, evidence_of, map_statistics, other_architectures

from benchmarks import tables
from dfganext.report import page


@pytest.fixture(scope="module")
def found(fine_tuned):
    records = all_rows(fine_tuned, accuracy=0.97, bce=0.9) + other_architectures(fine_tuned, resnet50=0.7)
    return evidence_of(fine_tuned, records, map_statistics(0.0))


@pytest.fixture(scope="module")
def rows(found):
    return pd.DataFrame(tables.measurements(found)).set_index(["table", "row", "measure"]).sort_index()


def test_accuracies_are_those_of_the_page(rows, found):
    for row in found.rows:
        recorded = rows.loc["I", row.key, "accuracy"]
        assert (recorded.value, recorded.low, recorded.high) == (row.mean, *row.interval)
    assert rows.loc["I", "convnext_bce_argmax", "accuracy"].value == 0.5


def test_differences_to_the_first_architecture(rows, found):
    accuracies = {row.model: row.mean for row in found.architectures}
    gap = rows.loc["architectures", "convnext_resnet50", "accuracy of convnext_tiny minus this one's"]
    assert gap.low < gap.value < gap.high and gap.value == pytest.approx(
        accuracies["convnext_tiny"] - accuracies["resnet50"]
    )
    assert gap.text.startswith("exact McNemar p = ")


def test_densities_of_each_protocol(rows):
    for protocol in ("paper", "tree", "heldout"):
        measured = rows.loc["II", f"{protocol}, real", "mean of the log density"]
        assert measured.value == DENSITY[protocol]["real"]["mean"]


def test_every_claim_has_its_verdict(rows, found):
    verdicts = dict(rows.loc["claims"].index)
    assert verdicts == {one.letter: one.verdict for one in page.verdicts.all_claims(found)}


def test_a_row_without_an_evaluation_is_left_out(fine_tuned):
    found = evidence_of(fine_tuned, all_rows(fine_tuned)[:1], map_statistics(0.0))
    keys = {row["row"] for row in tables.measurements(found) if row["table"] in ("I", "architectures")}
    assert keys == {"convnext_ce", "autoencoder_first", "spectrum", "convnext_convnext_tiny"}
