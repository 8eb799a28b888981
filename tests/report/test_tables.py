"""The page's tables as rows of a CSV file. tests/end_to_end runs the command."""

import pandas as pd
import pytest
from made_up import DENSITY, all_rows, evidence_of, map_statistics, other_architectures

from benchmarks import tables
from dfganext.report import verdicts


@pytest.fixture(scope="module")
def found(fine_tuned):
    records = all_rows(fine_tuned, accuracy=0.97, bce=0.9) + other_architectures(fine_tuned, resnet50=0.7)
    return evidence_of(fine_tuned, records, map_statistics(0.0))


def recorded(values) -> pd.DataFrame:
    return pd.DataFrame(list(values)).set_index(["row", "measure"])


def test_accuracies_are_those_of_the_page(found):
    rows = recorded(tables.accuracies(found.rows))
    for row in found.rows:
        accuracy = rows.loc[row.key, "accuracy"]
        assert (accuracy.value, accuracy.low, accuracy.high, accuracy.seeds) == (row.mean, *row.interval, "20")
    assert rows.loc["convnext_bce_argmax", "accuracy"].value == 0.5


def test_the_baseline_has_its_interval(found):
    rows = recorded(tables.spectrum(found.baseline, found.baseline_predictions))
    accuracy = rows.loc["spectrum", "accuracy"]
    assert accuracy.low < accuracy.value < accuracy.high


def test_differences_to_the_first_architecture(found):
    accuracies = {row.model: row.mean for row in found.architectures}
    gap = recorded(tables.differences(found.architectures)).loc[
        "convnext_resnet50", "accuracy of convnext_convnext_tiny minus this one's"
    ]
    assert gap.low < gap.value < gap.high
    assert gap.value == pytest.approx(accuracies["convnext_tiny"] - accuracies["resnet50"])
    assert gap.text.startswith("exact McNemar p = ")


def test_densities_of_each_protocol():
    rows = recorded(tables.densities(DENSITY))
    for protocol in ("paper", "tree", "heldout"):
        assert rows.loc[f"{protocol}, real", "mean of the log density"].value == DENSITY[protocol]["real"]["mean"]
    assert rows.loc["paper", "lone point"].value == DENSITY["paper"]["lone_point"]


def test_every_claim_has_its_verdict(found):
    concluded = {one.letter: one.verdict for one in verdicts.all_claims(found)}
    assert dict(recorded(tables.claims(found)).index) == concluded


def test_a_row_without_an_evaluation_is_left_out(fine_tuned):
    found = evidence_of(fine_tuned, all_rows(fine_tuned)[:1], map_statistics(0.0))
    assert {row["row"] for row in tables.accuracies(found.rows)} == {"convnext_ce", "autoencoder_first"}
    assert not list(tables.differences(found.architectures))
