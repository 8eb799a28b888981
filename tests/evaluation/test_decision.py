"""Real, fake or unsure, and why."""

import pytest

from dfganext.evaluation.decision import NO_RULE, DecisionRule, decide

RULE = DecisionRule(0.05, real_up_to=0.2, fake_above=0.8, novel_above=0.3)


@pytest.mark.parametrize(
    ("p_fake", "novelty", "expected"),
    [
        (0.2, 0.3, ("real", None)),
        (0.81, 0.0, ("fake", None)),
        (0.8, 0.0, ("unsure", "p_fake is between 0.200 and 0.800")),
        (0.99, 0.31, ("unsure", "unlike the training images: novelty 0.310, limit 0.300")),
    ],
)
def test_decision_and_reason(p_fake, novelty, expected):
    assert RULE.decide(p_fake, novelty) == expected


def test_an_error_rate_that_the_images_do_not_show_is_not_claimed():
    rule = DecisionRule(0.05, real_up_to=0.2, fake_above=None)
    assert rule.decide(1.0, 9.0) == ("unsure", "too few or too hard validation images to promise at most 5 % errors")
    assert rule.decide(0.1, 9.0) == ("real", None)


def test_another_threshold_never_contradicts_the_label():
    strict, lax = RULE.with_threshold(0.9), RULE.with_threshold(0.1)
    assert (strict.real_up_to, strict.fake_above) == (0.2, 0.9)
    assert (lax.real_up_to, lax.fake_above) == (0.1, 0.8)


def test_without_a_rule_every_image_is_unsure():
    assert decide(None, 1.0, 0.0) == ("unsure", NO_RULE)
