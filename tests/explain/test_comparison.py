"""Comparison of maps against counted pairs, and Holm's adjustment step by step."""

import numpy as np
import pandas as pd
import pytest
from made_up import map_statistics
from scipy import stats

from dfganext.explain import comparison


@pytest.fixture(scope="module")
def table():
    return map_statistics(0.7, seed=4)


def test_every_target_and_statistic_is_compared(table):
    found = comparison.compare(table)
    assert list(dict.fromkeys(found.comparison)) == ["target fake", "target real", "target own class"]
    assert len(found) == 3 * 7 and (found.fake == 100).all() and (found.real == 100).all()


def test_deltas_count_pairs(table):
    found = comparison.compare(table).set_index(["comparison", "statistic"])
    own = table[table.label == table.target]
    fake, real = (own[own.label == label].entropy.to_numpy() for label in ("fake", "real"))
    pairs = np.subtract.outer(fake, real)
    row = found.loc["target own class", "entropy"]
    assert row.cliffs_delta == pytest.approx(np.mean(pairs > 0) - np.mean(pairs < 0))
    assert row.low < row.cliffs_delta < row.high and row.high - row.low < 0.4
    assert row.p == pytest.approx(stats.mannwhitneyu(fake, real, alternative="two-sided").pvalue)
    assert (row.fake_median, row.real_median) == (np.median(fake), np.median(real))


def test_deltas_follow_the_planted_sign_for_each_target():
    turned = comparison.compare(map_statistics(1, turn=True)).set_index(["comparison", "statistic"]).cliffs_delta
    assert turned["target fake", "entropy"] > 0.4 and turned["target real", "entropy"] < -0.4


def test_blank_maps_are_left_out_and_too_few_maps_give_nan(table):
    thin = table.copy()
    thin.loc[thin.label == "real", "gini"] = np.nan
    thin.loc[(thin.label == "real").idxmax(), "gini"] = 0.5
    found = comparison.compare(thin).set_index(["comparison", "statistic"])
    assert found.loc["target real", "gini"].real <= 1 and np.isnan(found.loc["target real", "gini"].cliffs_delta)
    assert np.isfinite(found.loc["target real", "entropy"].p_holm)


def test_holm_step_by_step():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    # sorted: 0.005*4, 0.01*3, 0.03*2, then 0.04*1, raised to its predecessor
    np.testing.assert_allclose(comparison.holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    assert comparison.holm(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_correlation_within_a_class():
    rng = np.random.default_rng(0)
    x = pd.Series(rng.normal(size=300))
    y = pd.Series(0.6 * x + 0.8 * rng.normal(size=300))
    found = comparison.within_class_correlation(x, y)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    fisher = np.tanh(np.arctanh(found["spearman"]) + np.array([-1.96, 1.96]) * np.sqrt(1.06 / 297))  # Fieller 1957
    assert [found["low"], found["high"]] == pytest.approx(fisher, abs=0.03)
    y[::2] = np.nan
    assert comparison.within_class_correlation(x, y)["images"] == 150


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1] * 20, list(range(20)))])
def test_too_few_images_or_constant_values_have_no_correlation(x, y):
    found = comparison.within_class_correlation(pd.Series(x), pd.Series(y))
    assert found["spearman"] is found["low"] is None and found["images"] == len(x)
