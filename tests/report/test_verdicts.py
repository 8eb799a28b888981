"""Verdicts follow planted effects; without sufficient data a claim is not tested."""

from dataclasses import replace

import pytest
from made_up import all_rows, evidence_of, map_statistics, other_architectures
from scipy import stats

from dfganext.report import rules, verdicts

PRACTICALLY = "supported for practical purposes, though not chance"
WORDS = {
    "supported", PRACTICALLY, "refuted", "no difference that matters", "no different from chance",
    "inconclusive", "not tested",
}  # fmt: skip


def concluded(chosen, records=None, maps=None, sample=False, **options) -> dict[str, rules.Conclusion]:
    records = all_rows(chosen) if records is None else records
    evidence = evidence_of(chosen, records, map_statistics(0.0) if maps is None else maps, **options)
    return {one.letter: one for one in verdicts.all_claims(replace(evidence, sample=sample))}


def test_every_claim_has_a_verdict_an_effect_and_a_rule(fine_tuned):
    found = concluded(fine_tuned, all_rows(fine_tuned) + other_architectures(fine_tuned))
    assert list(found) == list("abcdefgh")
    for one in found.values():
        assert one.verdict in WORDS
        assert (one.confidence is None) == (one.verdict in ("inconclusive", "not tested"))
        assert one.effect and one.because.endswith(".") and one.rule


@pytest.mark.parametrize(("accuracy", "bce", "verdict"), [(0.995, 0.8, "supported"), (0.8, 0.995, "refuted")])
def test_whether_cross_entropy_is_best(fine_tuned, accuracy, bce, verdict):
    assert concluded(fine_tuned, all_rows(fine_tuned, accuracy, bce))["a"].verdict == verdict


@pytest.mark.parametrize(("resnet", "verdict"), [(0.8, "supported"), (0.97, "inconclusive"), (1.0, "refuted")])
def test_whether_another_architecture_is_as_good(fine_tuned, resnet, verdict):
    records = all_rows(fine_tuned, accuracy=0.93 if resnet == 1 else 0.97)
    found = concluded(fine_tuned, records + other_architectures(fine_tuned, resnet50=resnet))["h"]
    assert found.verdict == verdict
    assert "over resnet50" in found.effect


def test_claim_h_needs_every_architecture_and_the_papers_start(fine_tuned, shipped):
    records = all_rows(fine_tuned) + other_architectures(fine_tuned)[1:]
    found = concluded(fine_tuned, records)["h"]
    assert (found.verdict, "resnet50" in found.because) == ("not tested", True)
    assert "`make architectures`" in found.because
    random = concluded(shipped, all_rows(shipped) + other_architectures(shipped))["h"]
    assert random.verdict == "not tested" and "ImageNet" in random.because
    other = replace(fine_tuned, architectures=["resnet50", "convnext_tiny"])
    assert "not ConvNeXt-T" in concluded(other, all_rows(fine_tuned))["h"].because


def test_claim_a_needs_all_rows(fine_tuned):
    first, second = all_rows(fine_tuned, 0.995, 0.8)
    found = concluded(fine_tuned, [first])["a"]
    assert found.verdict == "not tested" and "make table1" in found.because
    assert "binary cross entropy, fake where" in found.because and "56 px" in found.because
    assert "argmax" not in found.because and "96 px, fake" not in found.because
    other_seed = replace(second, params={**second.params, "seed": "99"})
    assert concluded(fine_tuned, [first, other_seed])["a"].verdict == "not tested", "they were never compared"
    assert concluded(fine_tuned, all_rows(fine_tuned, 0.6, 0.995)[::-1])["a"].verdict == "refuted"


def test_the_spectrum_baseline_is_compared_for_every_loss(fine_tuned):
    records = all_rows(fine_tuned, 0.995, 0.8)
    bce = replace(fine_tuned, loss="bce")
    assert "the spectrum baseline" in concluded(fine_tuned, records)["a"].effect
    assert concluded(bce, records[::-1])["a"].effect == concluded(fine_tuned, records)["a"].effect


def test_best_but_below_the_papers_accuracy_is_inconclusive(fine_tuned):
    found = concluded(fine_tuned, all_rows(fine_tuned, 0.9, 0.6))["a"]
    assert found.verdict == "inconclusive" and "99.50 %" in found.because


def test_random_weights_and_other_networks_do_not_test_claim_a(shipped, fine_tuned):
    assert "random" in concluded(shipped)["a"].because and concluded(shipped)["a"].verdict == "not tested"
    other = replace(fine_tuned, convnext=replace(fine_tuned.convnext, architecture="resnet18"))
    assert concluded(other)["a"].verdict == "not tested" and "resnet18" in concluded(other)["a"].because


@pytest.mark.parametrize(
    ("accuracy", "bce", "verdict"),
    [(0.97, 0.97, "refuted"), (0.97, 0.45, "supported"), (0.97, 0.3, "inconclusive"), (0.55, 0.97, "not tested")],
)
def test_whether_binary_cross_entropy_fails(fine_tuned, accuracy, bce, verdict):
    assert concluded(fine_tuned, all_rows(fine_tuned, accuracy, bce))["b"].verdict == verdict


@pytest.mark.parametrize(("apart", "verdict"), [(-2.0, "refuted"), (2.0, "refuted"), (0.35, "inconclusive")])
def test_whether_autoencoders_separate(fine_tuned, apart, verdict):
    found = concluded(fine_tuned, all_rows(fine_tuned, apart=apart))["c"]
    assert found.verdict == verdict
    assert ("in the reverse direction" in found.because) == (apart < 0)


def test_missing_rows_are_not_tested(fine_tuned):
    found = concluded(fine_tuned, all_rows(fine_tuned)[:1])
    assert found["b"].verdict == found["d"].verdict == "not tested" and "make table1" in found["d"].because


@pytest.mark.parametrize(
    ("shift", "turn", "verdict"),
    [(1, False, "supported"), (-1.5, False, "refuted"), (1, True, "refuted"), (0, False, "inconclusive")],
)
def test_whether_fake_images_have_wider_weaker_maps(fine_tuned, shift, turn, verdict):
    found = concluded(fine_tuned, maps=map_statistics(shift, turn))["f"]
    assert found.verdict == verdict and ("sign changes with the target class" in found.because) == turn


@pytest.mark.parametrize(
    ("shift", "on_face", "verdict"), [(1, 0.1, "supported"), (-1.5, -0.1, "refuted"), (0, 0.1, "inconclusive")]
)
def test_whether_real_images_maps_sit_on_the_face(fine_tuned, shift, on_face, verdict):
    face = fine_tuned.gradcam.face
    chance = 3.14159265 / 4 * face.width * face.height
    maps = map_statistics(shift, on_face=on_face + chance - 0.42)
    assert concluded(fine_tuned, maps=maps)["e"].verdict == verdict


def test_only_the_part_of_the_ellipse_in_the_image_counts_as_chance(fine_tuned):
    face = replace(fine_tuned.gradcam.face, x=0.0, y=0.5, width=1.0, height=1.0)
    chosen = replace(fine_tuned, gradcam=replace(fine_tuned.gradcam, face=face))
    even = map_statistics(1, on_face=3.14159265 / 8 - 0.42)
    assert (
        "0.393" in concluded(chosen, maps=even)["e"].effect
        and concluded(chosen, maps=even)["e"].verdict == "no different from chance"
    )


@pytest.mark.parametrize(("slope", "verdict"), [(3, "supported"), (0, "refuted"), (0.35, "inconclusive")])
def test_whether_density_explains_spread(fine_tuned, slope, verdict):
    assert concluded(fine_tuned, density_slope=slope)["g"].verdict == verdict


def test_maps_of_a_classifier_near_chance_test_nothing(fine_tuned):
    found = concluded(fine_tuned, all_rows(fine_tuned, accuracy=0.55), maps=map_statistics(1))
    assert found["e"].verdict == found["f"].verdict == found["g"].verdict == "not tested"


def test_the_drawn_sample_tests_no_claim(fine_tuned):
    found = concluded(fine_tuned, maps=map_statistics(1), sample=True)
    assert {one.verdict for one in found.values()} == {"not tested"}
    assert "drawn" in found["b"].because and found["b"].effect


def near(value, half=0.001):
    return rules.Effect(value, [value - half, value + half])


def decided(letter, **effects):
    """The conclusion of a rule from effects, each a list of values with intervals of ± 0.001."""
    given = {kind: [near(value) for value in values] for kind, values in effects.items()}
    return rules.decide(letter, "", rules.Measured(given))


SMALLEST = {"a": 0.01, "b": 0.1, "c": 0.15, "d": 0.01, "e": 0.05, "f": 0.147, "g": 0.3, "h": 0.01}


@pytest.mark.parametrize(
    ("letter", "shape", "within", "at", "beyond"),
    [
        ("a", lambda size: {"gap": [0.3, size], "published": [0]}, "no difference that matters", "inconclusive", "supported"),
        ("a", lambda size: {"gap": [0.3, -size], "published": [0]}, "no difference that matters", "inconclusive", "refuted"),
        ("a", lambda size: {"gap": [0.3], "published": [-size]}, "supported", "supported", "inconclusive"),
        ("b", lambda size: {"accuracy": [0.5 + size]}, PRACTICALLY, "inconclusive", "refuted"),
        ("b", lambda size: {"accuracy": [0.5 - size]}, PRACTICALLY, "inconclusive", "inconclusive"),
        ("c", lambda size: {"area": [0.5, 0.5 + size]}, PRACTICALLY, "inconclusive", "refuted"),
        ("c", lambda size: {"area": [0.5 - size, 0.5]}, PRACTICALLY, "inconclusive", "refuted"),
        ("d", lambda size: {"gap": [size]}, "no difference that matters", "inconclusive", "supported"),
        ("d", lambda size: {"gap": [-size]}, "no difference that matters", "inconclusive", "refuted"),
        ("e", lambda size: {"mass": [size], "intensity": [-0.5] * 3}, "no different from chance", "inconclusive", "supported"),
        ("e", lambda size: {"mass": [-size], "intensity": [0.5] * 3}, "no different from chance", "inconclusive", "refuted"),
        ("f", lambda size: maps_that_differ(size), "no difference that matters", "inconclusive", "supported"),
        ("f", lambda size: maps_that_differ(-size), "no difference that matters", "inconclusive", "refuted"),
        ("f", lambda size: maps_that_differ(size, -size), "no difference that matters", "inconclusive", "refuted"),
        ("g", lambda size: {"rho": [size]}, "refuted", "inconclusive", "supported"),
        ("g", lambda size: {"rho": [-size]}, "refuted", "inconclusive", "supported"),
        ("h", lambda size: {"gap": [0.3, size]}, "no difference that matters", "inconclusive", "supported"),
        ("h", lambda size: {"gap": [0.3, -size]}, "no difference that matters", "inconclusive", "refuted"),
    ],
)  # fmt: skip
def test_effects_below_at_and_above_the_smallest_that_matters(letter, shape, within, at, beyond):
    bound = SMALLEST[letter]
    found = [decided(letter, **shape(bound + step)).verdict for step in (-0.003, 0, 0.003)]
    assert found == [within, at, beyond]
    assert f"{bound:g}" in rules.RULES[letter].text or f"{bound:.0%}".replace("%", " %") in rules.RULES[letter].text


def maps_that_differ(delta, other=None):
    spread = [delta, delta, delta if other is None else other]
    return {**dict.fromkeys(verdicts.SPREAD, spread), "intensity": [-one for one in spread]}


def test_intensity_matters_from_its_bound_on():
    found = [decided("e", mass=[0.2], intensity=[-size] * 3).verdict for size in (0.144, 0.147, 0.150)]
    assert found == ["inconclusive", "inconclusive", "supported"]


def test_effects_measured_on_photographs():
    area = rules.Effect(0.405, [0.370, 0.441])
    found = rules.decide("c", "", rules.Measured({"area": [area]}))
    assert found.verdict == "supported for practical purposes, though not chance" and found.confidence > 0.95
    mass = rules.Effect(0.322 - 0.334, [-0.02, -0.004])
    intensity = [rules.Effect(0.1, [-0.1, 0.3])] * 3
    found = rules.decide("e", "", rules.Measured({"mass": [mass], "intensity": intensity}))
    assert found.verdict == "no different from chance"


@pytest.mark.parametrize(("value", "verdict"), [(0.5, "supported"), (0.502, PRACTICALLY)])
def test_chance_is_distinguished_from_near_chance(value, verdict):
    assert decided("b", accuracy=[value]).verdict == decided("c", area=[value]).verdict == verdict


def test_confidence_is_the_widest_interval_that_keeps_the_verdict():
    effect = rules.Effect(0.05, [0.02, 0.08])  # standard error 0.03 / 1.96; the bound is 0.04 away
    found = rules.decide("d", "", rules.Measured({"gap": [effect]}))
    z = 1.959964 * 0.04 / 0.03
    assert found.verdict == "supported" and found.confidence == pytest.approx(2 * stats.norm.cdf(z) - 1, abs=1e-6)
    assert decided("d", gap=[0.0095]).confidence is None, "inconclusive"


def test_effects_as_text():
    effect = rules.Effect(0.5, [0.4, 0.6])
    assert (effect.number(), effect.number(2, sign=True)) == ("0.500 (0.400 … 0.600)", "+0.50 (0.40 … 0.60)")
    assert (effect.percent(), effect.points()) == ("50.00 % (40.0 … 60.0 %)", "+50.00 points (40.0 … 60.0)")


@pytest.mark.parametrize(
    ("interval", "places"),
    [
        ([0.4, 0.6], {"within", "central"}),
        ([0.4, 0.5], {"within", "central"}),
        ([0.5, 0.6], {"within", "central"}),
        ([0.52, 0.6], {"within"}),
        ([0.6, 0.7], set()),
        ([0.3, 0.4], set()),
        ([0.61, 0.7], {"above"}),
        ([0.3, 0.39], {"below"}),
    ],
)
def test_where_an_interval_lies_by_bounds_that_belong_to_the_inside(interval, places):
    effect = rules.Effect(sum(interval) / 2, interval)
    assert {one for one in ("above", "below", "within", "central") if effect.lies(one, [0.4, 0.6])} == places
