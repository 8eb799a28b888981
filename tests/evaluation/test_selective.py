"""Thresholds for "unsure": the promised error rate, by simulation, and what happens with too few images."""

import numpy as np
import pytest
from scipy import stats

from dfganext.data.arrays import Images
from dfganext.evaluation import selective
from dfganext.evaluation.decision import DecisionRule
from dfganext.settings import OperatingPoint


def drawn(rng: np.random.Generator, per_class: int, separation: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], per_class)
    logits = rng.normal(np.where(labels == 1, separation / 2, -separation / 2), 1)
    return labels, 1 / (1 + np.exp(-separation * logits))


def test_bound_is_clopper_and_pearson_one_sided():
    expected = stats.binomtest(3, 100).proportion_ci(0.9, "exact").high
    assert selective.upper_bounds(np.array([3, 5]), np.array([100, 5])) == pytest.approx([expected, 1])


@pytest.mark.parametrize(("max_error", "images"), [(0.05, 59), (0.1, 29), (0.01, 299)])
def test_fewest_images_that_show_an_error_rate(max_error, images):
    assert selective.images_needed(max_error) == images
    enough, too_few = selective.upper_bounds(np.zeros(2), np.array([images, images - 1]))
    assert enough <= max_error < too_few


def reference_predictions(scores: np.ndarray, right: np.ndarray, max_error: float) -> np.ndarray:
    """For which images the class is predicted, bool (n,), by one threshold after another, with SciPy's own bound."""
    start = max(np.log(0.05) / np.log(1 - max_error), 0.25 * right.sum())
    called = np.zeros(len(scores), bool)
    for score in np.unique(scores)[::-1]:
        among = scores >= score
        if among.sum() < start:
            continue
        bound = stats.binomtest(int(np.sum(~right[among])), int(among.sum())).proportion_ci(0.9, "exact").high
        if bound > max_error:
            break
        called = among
    return called


@pytest.mark.parametrize(("per_class", "max_error"), [(60, 0.05), (60, 0.2), (150, 0.05), (150, 0.2)])
def test_thresholds_agree_with_a_reference_that_tries_one_after_another(per_class, max_error):
    """Each threshold lies half way to the next image, or is the decision threshold."""
    chosen = 0
    for seed in range(12):
        rng = np.random.default_rng([seed, per_class])
        labels, p_fake = drawn(rng, per_class, rng.uniform(1, 6))
        p_fake = p_fake.round(rng.integers(1, 5))  # equal scores among them
        threshold = rng.choice([0.1, 0.5, 0.9])
        rule, found = selective.choose(labels, p_fake, threshold, max_error)
        for label, name, cut in ((1, "fake", rule.fake_above), (0, "real", rule.real_up_to)):
            highest, lowest = (max, min) if label else (min, max)
            called = reference_predictions(p_fake if label else -p_fake, labels == label, max_error)
            assert (cut is not None) == called.any()
            if cut is None:
                continue
            chosen += 1
            last = lowest(p_fake[called])
            expected = last if called.all() else (last + highest(p_fake[~called])) / 2
            assert cut == pytest.approx(highest(threshold, expected))
            called = p_fake > cut if label else p_fake <= cut
            assert found[name]["images"] == called.sum() and found[name]["errors"] == (labels[called] != label).sum()
    assert chosen > 8


@pytest.mark.parametrize("separation", [2.0, 3.0, 4.0])
def test_error_rate_exceeds_the_promise_in_at_most_5_percent_of_samples(separation):
    """The true error rate of each chosen threshold is exact, from the normal distributions of the logits."""
    rng = np.random.default_rng(0)
    broken = {"fake": 0, "real": 0}
    samples = 600
    for _ in range(samples):
        labels, p_fake = drawn(rng, 150, separation)
        rule, _ = selective.choose(labels, p_fake, 0.5, 0.05)

        def logit(p: float) -> float:
            return float(np.log(p / (1 - p)) / separation)

        if rule.fake_above is not None:
            fakes, reals = stats.norm.sf(logit(rule.fake_above), [separation / 2, -separation / 2])
            broken["fake"] += reals / (reals + fakes) > 0.05
        if rule.real_up_to is not None:
            fakes, reals = stats.norm.cdf(logit(rule.real_up_to), [separation / 2, -separation / 2])
            broken["real"] += fakes / (reals + fakes) > 0.05
    # 5 % of 600 samples, and 3 standard errors of that count
    assert max(broken.values()) <= 0.05 * samples + 3 * np.sqrt(0.05 * 0.95 * samples)


def test_perfect_detector_is_never_unsure():
    labels = np.repeat([0, 1], 100)
    p_fake = np.where(labels == 1, 0.9, 0.1)
    rule, found = selective.choose(labels, p_fake, 0.5, 0.05)
    assert (rule.real_up_to, rule.fake_above) == (0.5, 0.5)
    assert found["fake"] == {"images": 100, "errors": 0, "bound": pytest.approx(1 - 0.05 ** (1 / 100))}
    assert [rule.decide(p, 0).decision for p in (0.2, 0.5, 0.51)] == ["real", "real", "fake"]


def test_too_few_images_promise_nothing():
    labels = np.repeat([0, 1], 58)
    rule, found = selective.choose(labels, labels.astype(float), 0.5, 0.05)
    assert rule == DecisionRule(0.05, None, None)
    assert found["fake"] == {"images": 0, "errors": 0, "bound": None}
    assert rule.decide(1.0, 0).decision == rule.decide(0.0, 0).decision == "unsure"


def test_detector_at_chance_is_always_unsure():
    rng = np.random.default_rng(0)
    rule, _ = selective.choose(np.repeat([0, 1], 500), rng.uniform(size=1000), 0.5, 0.05)
    assert rule == DecisionRule(0.05, None, None)


def test_rule_leaves_out_images_with_errors():
    """Below 0.7, one in four images is real: they are left out, and 0.7 lies between the two parts."""
    labels = np.r_[np.ones(200), np.tile([0, 1, 1, 1], 50), np.zeros(400)].astype(int)
    p_fake = np.r_[np.linspace(0.8, 1, 200), np.linspace(0.51, 0.6, 200), np.linspace(0, 0.4, 400)]
    rule, found = selective.choose(labels, p_fake, 0.5, 0.05)
    assert 0.55 < rule.fake_above < 0.8
    assert found["fake"]["bound"] <= 0.05
    assert rule.decide(0.52, 0) == ("unsure", f"p_fake is between 0.500 and {rule.fake_above:.3f}")


def test_images_of_a_group_count_once():
    labels = np.repeat([0, 1], 100)
    groups = np.arange(200) // 2  # 50 groups of a class are too few
    rule, found = selective.choose(labels, labels.astype(float), 0.5, 0.05, groups)
    assert found["images"] == 100
    assert rule == DecisionRule(0.05, None, None)


def test_images_of_equal_score_are_called_together():
    labels = np.r_[np.ones(60), np.tile([0, 1], 40), np.zeros(100)].astype(int)
    p_fake = np.r_[np.full(60, 0.9), np.full(80, 0.8), np.full(100, 0.1)]
    rule, _ = selective.choose(labels, p_fake, 0.5, 0.05)
    assert 0.8 < rule.fake_above < 0.9


def test_novelty_threshold_is_exceeded_as_often_as_permitted():
    """Over many samples, the share of new images above the threshold is at most max_novel, and just below it."""
    rng = np.random.default_rng(0)
    above = [1 - selective.novelty_threshold(rng.uniform(size=99), 0.05) for _ in range(2000)]
    assert np.mean(above) == pytest.approx(0.05, abs=0.002)


def test_too_few_images_give_no_novelty_threshold():
    assert selective.novelty_threshold(np.arange(48), 0.02) is None
    assert selective.novelty_threshold(np.arange(49), 0.02) == 48


def test_rule_is_chosen_without_novel_images():
    labels = np.repeat([0, 1], 120)
    novelty = np.linspace(0, 1, 240)[np.random.default_rng(1).permutation(240)]
    p_fake = np.where(novelty > 0.988, 1 - labels, labels).astype(float)  # wrong only where novel
    images = Images(np.zeros((240, 1)), labels, [""] * 240, np.arange(240))
    rule, found = selective.make_rule(images, p_fake, novelty, 0.5, OperatingPoint(0.05, 0.02))
    assert rule.novel_above == pytest.approx(np.sort(novelty)[236])
    assert found["fake"]["errors"] == found["real"]["errors"] == 0
    assert rule.decide(1.0, 1.0).decision == "unsure"


def test_images_are_decided_one_by_one():
    rule = DecisionRule(0.05, real_up_to=0.2, fake_above=0.8, novel_above=0.3)
    p_fake, novelty = np.array([0.1, 0.9, 0.5, 0.9]), np.array([0.0, 0.3, 0.0, 0.4])
    decisions, novel = selective.decide(rule, p_fake, novelty)
    assert (decisions.tolist(), novel.tolist()) == (["real", "fake", "unsure", "unsure"], [False, False, False, True])
    decisions, novel = selective.decide(None, p_fake, novelty)
    assert (set(decisions), novel.any()) == ({"unsure"}, False)


def test_measured_shares():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    decisions = np.array(["real", "fake", "unsure", "fake", "fake", "real", "unsure", "unsure"])
    novel = np.array([0, 0, 1, 0, 0, 0, 0, 0], bool)
    found = selective.measure(labels, decisions, novel)
    assert {name: found[name] for name in ("unsure", "novel", "accuracy", "error_fake", "error_real")} == {
        "unsure": 3 / 8,
        "novel": 1 / 8,
        "accuracy": 3 / 5,
        "error_fake": pytest.approx(1 / 3),
        "error_real": 1 / 2,
    }
    assert found["intervals"]["error_real"][0] < 0.5 < found["intervals"]["error_real"][1]


def test_nothing_decided_has_no_accuracy():
    found = selective.measure(np.array([0, 1]), np.array(["unsure", "unsure"]), np.zeros(2, bool))
    assert (found["unsure"], found["accuracy"], found["error_fake"]) == (1, None, None)
