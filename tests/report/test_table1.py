"""Table I: each row contains exactly the records with its settings, code, libraries and weights."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import all_rows, predictions, record
from scipy import stats

from dfganext.report import table1


def rows(records, chosen):
    return {row.key: row for row in table1.collect(records, chosen)}


def test_each_row_has_its_own_decision_rule(shipped):
    records = all_rows(shipped, accuracy=0.9, bce=0.8)
    found = rows(records, shipped)
    assert list(found) == [
        "convnext_ce",
        "convnext_bce",
        "convnext_bce_argmax",
        "autoencoder_first",
        "autoencoder_second",
    ]
    for key, one in (("convnext_ce", records[0]), ("convnext_bce", records[1])):
        table = one.predictions
        assert found[key].mean == np.mean((table.logit > 0) == (table.label == "fake"))
    assert found["convnext_bce_argmax"].mean == 0.5
    table = records[1].predictions
    error_rule = (table.reconstruction_error > shipped.table1.second.threshold) == (table.label == "fake")
    assert found["autoencoder_second"].mean == error_rule.mean()


def test_each_decision_rule_image_by_image(shipped):
    """In order of path, whatever the order of the rows; a score at its threshold is real."""
    limits = [getattr(shipped.table1, name).threshold for name in ("first", "second")]
    columns = ["path", "label", "logit", "argmax", "error"]
    table = pd.DataFrame(
        [
            ("real/1.png", "real", -1.0, "real", 0.5),
            ("fake/0.png", "fake", 2.0, "real", 2.0),
            ("real/0.png", "real", 4.0, "fake", 1.0),
            ("fake/1.png", "fake", 0.0, "fake", 1.0),
        ],
        columns=columns,
    ).assign(group=range(4))
    records = [
        replace(one, predictions=table.assign(reconstruction_error=table.error * limit))
        for one, limit in zip(all_rows(shipped), limits, strict=True)
    ]
    found = rows(records, shipped)
    expected = {
        "convnext_ce": [True, False, False, True],
        "convnext_bce": [True, False, False, True],
        "convnext_bce_argmax": [False, True, False, True],
        "autoencoder_first": [True, False, True, True],
        "autoencoder_second": [True, False, True, True],
    }
    assert {key: row.correct[0].tolist() for key, row in found.items()} == expected
    assert found["convnext_ce"].f1 == 0.5  # one fake of two is found, and one real image called fake


def test_the_roc_auc_of_a_row_is_the_mean_of_its_model_over_seeds(shipped):
    records = [*all_rows(shipped, apart=1.0), *all_rows(shipped, accuracy=0.8, apart=1.0, seed=21)]
    found = rows(records, shipped)
    for key, part in (("convnext_ce", "convnext"), ("autoencoder_first", "autoencoder")):
        each = [records[number].scores[part]["roc_auc"] for number in (0, 2)]
        assert each[0] != each[1] and found[key].roc_auc == pytest.approx(np.mean(each))


def test_the_interval_is_that_of_the_seed_with_the_fewest_effective_images(shipped):
    """One seed is right or wrong about both images of a group, so that it has half as many."""
    right = np.repeat(np.random.default_rng(0).random(100) < 0.8, 2)

    def in_pairs(one):
        table = one.predictions.sort_values("path", ignore_index=True)
        return replace(one, predictions=table.assign(group=np.arange(200) // 2))

    alone, paired = (in_pairs(record(shipped, 0.8, run=str(seed), seed=seed)) for seed in (20, 21))
    signs = np.where(right == (paired.predictions.label == "fake"), 1, -1)
    paired = replace(paired, predictions=paired.predictions.assign(logit=signs * paired.predictions.logit.abs()))
    row = rows([alone, paired], shipped)["convnext_ce"]
    exact = stats.binomtest(round(row.mean * 100), 100).proportion_ci(method="wilson")
    assert row.interval == pytest.approx([exact.low, exact.high], abs=5e-3)


@pytest.mark.parametrize(
    "changes",
    [{"convnext__lr": 0.5}, {"convnext__augment.rotation": 3.0}, {"resize__reencode": True}, {"convnext__size": 64}],
)
def test_other_settings_are_other_rows(shipped, changes):
    found = rows([record(shipped, **changes)], shipped)
    assert not found["convnext_ce"].records


def test_settings_that_do_not_affect_a_row_may_differ(shipped):
    first = shipped.table1.first
    one = record(
        shipped,
        machine__workers=7,
        gradcam__per_class=1,
        autoencoder__size=first.size,
        autoencoder__threshold=first.threshold,
        convnext__lr=0.5,
    )
    found = rows([one], shipped)
    assert found["autoencoder_first"].records and not found["convnext_ce"].records
    assert rows([record(shipped, convnext__processes=2)], shipped)["convnext_ce"].records


def test_with_a_teacher_the_number_of_processes_makes_another_row(shipped):
    teacher = replace(shipped.convnext.teacher, architecture="test_convnext", weights="random")
    taught = replace(shipped, convnext=replace(shipped.convnext, teacher=teacher))
    assert rows([record(taught)], taught)["convnext_ce"].records
    assert not rows([record(taught, convnext__processes=2)], taught)["convnext_ce"].records


def test_the_newest_record_of_each_seed_counts_and_seeds_are_averaged(shipped):
    newest, older, other = (
        record(shipped, accuracy, run=run, seed=seed)
        for accuracy, run, seed in ((0.9, "new", 20), (0.7, "old", 20), (0.8, "other", 21))
    )
    row = rows([newest, older, other], shipped)["convnext_ce"]
    assert [one.run_id for one in row.records] == ["new", "other"] and row.seeds == [20, 21]
    each = [np.mean((one.predictions.logit > 0) == (one.predictions.label == "fake")) for one in (newest, other)]
    assert row.mean == pytest.approx(np.mean(each)) and row.std == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert row.extremes == (min(each), max(each))
    exact = stats.binomtest(round(row.mean * 200), 200).proportion_ci(method="wilson")
    assert row.interval == pytest.approx([exact.low, exact.high], abs=3e-3)


def test_one_seed_has_no_std(shipped):
    assert rows([record(shipped)], shipped)["convnext_ce"].std is None
    assert rows([record(shipped)], shipped)["convnext_ce"].extremes is None


def test_experiments_are_those_that_are_missing(shipped):
    everything = table1.experiments([], shipped, seeds=2)
    assert [(one["seed"], one["loss"]) for one in everything] == [(20, "ce"), (20, "bce"), (21, "ce"), (21, "bce")]
    assert all("subsample.seed" not in one for one in everything), "all seeds are trained on one split"
    assert everything[0]["autoencoder.size"] == shipped.table1.first.size
    assert everything[1]["autoencoder.threshold"] == shipped.table1.second.threshold
    left = table1.experiments(all_rows(shipped), shipped, seeds=2)
    assert [(one["seed"], one["loss"]) for one in left] == [(21, "ce"), (21, "bce")]
    assert table1.experiments([*all_rows(shipped), *all_rows(shipped, seed=21)], shipped, seeds=2) == []


def test_records_of_other_code_libraries_or_weights_are_excluded(shipped):
    records = [replace(one, parts=frozenset({table1.AUTOENCODER})) for one in all_rows(shipped)]
    found = rows(records, shipped)
    assert not found["convnext_ce"].records and not found["convnext_bce_argmax"].records
    assert found["autoencoder_first"].records and found["autoencoder_second"].records
    assert len(table1.experiments(records, shipped, seeds=1)) == 2
    networks = [replace(one, parts=frozenset({table1.NETWORK})) for one in all_rows(shipped)]
    assert len(table1.experiments(networks, shipped, seeds=1)) == 2


def test_networks_are_compared_image_by_image(shipped):
    found = rows(all_rows(shipped, accuracy=0.95, bce=0.7), shipped)
    compared = table1.compare(found["convnext_ce"], found["convnext_bce"])
    ours, theirs = (found[f"convnext_{loss}"].correct[0] for loss in ("ce", "bce"))
    assert compared["seed"] == 20 and compared["difference"] == pytest.approx(ours.mean() - theirs.mean())
    assert compared["only_first"] - compared["only_second"] == ours.sum() - theirs.sum()
    low, high = compared["interval"]
    assert low < compared["difference"] < high and compared["p"] < 0.05


def test_rows_without_a_common_seed_are_not_compared(shipped):
    ce, bce = all_rows(shipped)[0], all_rows(shipped, seed=21)[1]
    found = rows([ce, bce], shipped)
    assert table1.compare(found["convnext_ce"], found["convnext_bce"]) is None
    assert table1.roc_auc_difference(found["autoencoder_first"], found["autoencoder_second"]) is None


def test_difference_of_the_autoencoders_roc_aucs(shipped):
    found = rows(all_rows(shipped, apart=2.0), shipped)
    gap = table1.roc_auc_difference(found["autoencoder_first"], found["autoencoder_second"])
    low, high = gap["interval"]
    assert gap["difference"] == 0 and -0.1 < low < 0 < high < 0.1, "both have the same errors, on 200 images"


def test_the_order_of_rows_does_not_matter(shipped):
    one = record(shipped)
    shuffled = replace(one, predictions=one.predictions.sample(frac=1, random_state=1))
    right = [rows([each], shipped)["convnext_ce"].correct[0] for each in (one, shuffled)]
    np.testing.assert_array_equal(*right)
    assert len(predictions(0.5, 1)) == len(right[0])


def test_images_in_one_group_count_as_one(shipped):
    records = all_rows(shipped, accuracy=0.9, bce=0.7)
    alike = [replace(one, predictions=one.predictions.assign(group=np.arange(200) // 100)) for one in records]
    alone, together = rows(records, shipped), rows(alike, shipped)

    def widths(found):
        ce, bce = found["convnext_ce"], found["convnext_bce"]
        return [high - low for low, high in (ce.interval, table1.compare(ce, bce)["interval"])]

    assert all(wide > 1.2 * narrow for wide, narrow in zip(widths(together), widths(alone), strict=True))
