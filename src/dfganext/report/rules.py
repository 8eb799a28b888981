"""Rules for the paper's claims: which measured effects support or refute a claim.

A rule is data: equivalence bounds, within which an effect is too small to matter, and outcomes in order. One evaluator, `decide`,
applies all rules. Rules compare 95 % intervals with the bounds, never point values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scipy import stats

from dfganext.evaluation import intervals
from dfganext.evaluation.intervals import Interval
from dfganext.report.text import percent

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED = "supported", "refuted", "inconclusive", "not tested"
PRACTICALLY = "supported for practical purposes, though not chance"
NO_DIFFERENCE, LIKE_CHANCE = "no difference that matters", "no different from chance"

# The smallest effects that matter
POINTS = 0.01
"""Difference of accuracies: one image in a hundred, twice the error that the paper reports for its best network."""
COIN = 0.1
"""Distance of an accuracy from 0.5: a detector that is correct for fewer than 60 % of images is of no use."""
SEPARATION = 0.15
"""Distance of a ROC AUC from 0.5, equivalent to COIN: for two normal distributions of equal variance, 0.65 is an accuracy of at
most 61 %."""
MASS = 0.05
"""Share of a map's sum in the face ellipse, minus the share of an even map."""
NEGLIGIBLE = 0.147
"""Cliff's delta below which a difference is called negligible (Romano et al. 2006)."""
EXPLAINS = 0.3
"""Spearman's rho from which one measurement explains another: 9 % of the variance of ranks."""

SPREAD = ("entropy", "effective_area", "above_half")
"""Statistics that measure how spread out a map is."""

ABOVE, BELOW, SMALL, ALIKE, UNSURE = "above", "below", "small", "alike", "unsure"
MAX_STRETCH = 3.0
"""Intervals are widened at most by this factor, to a confidence level of 1 - 4e-9."""


@dataclass(frozen=True)
class Conclusion:
    """What the results say about one of the paper's claims.

    letter, claim: the paper's claim.
    effect: the measured effects, as text.
    because: why the rule gives this verdict.
    rule: the rule, as text.
    confidence: the highest confidence level of the intervals, 0.95...1, at which the rule still gives this verdict; None where
        the verdict is inconclusive or not tested. For other levels than 95 %, both sides of an interval are stretched by the
        ratio of the normal quantiles.
    """

    letter: str
    claim: str
    verdict: str
    effect: str
    because: str
    rule: str
    confidence: float | None = None

    @property
    def style(self) -> str:
        """Name of the verdict's CSS class."""
        return {PRACTICALLY: "practically", NO_DIFFERENCE: "no-difference", LIKE_CHANCE: "no-difference"}.get(
            self.verdict, self.verdict.replace(" ", "-")
        )


@dataclass(frozen=True)
class Effect:
    """A measured effect and its 95 % interval; name distinguishes effects of one kind."""

    value: float
    interval: Interval
    name: str = ""

    def place(self, bounds: tuple[float, float], stretch: float = 1.0) -> str:
        """Position of the interval, with both sides stretched, relative to equivalence bounds.

        ABOVE or BELOW both bounds; within them: ALIKE if it includes their middle, else SMALL; UNSURE if it includes a bound.
        """
        low, high = (self.value + stretch * (end - self.value) for end in self.interval)
        middle = sum(bounds) / 2
        if low > bounds[1]:
            return ABOVE
        if high < bounds[0]:
            return BELOW
        if low < bounds[0] or high > bounds[1]:
            return UNSURE
        return ALIKE if low <= middle <= high else SMALL


Effects = dict[str, list[Effect]]
Places = dict[str, list[str]]


@dataclass(frozen=True)
class Measured:
    """Effects by kind and their text. untested: why the claim cannot be tested. otherwise: the reason if no outcome holds."""

    effects: Effects = field(default_factory=dict)
    text: str = ""
    untested: str = ""
    otherwise: str = "An interval is too wide to decide."


@dataclass(frozen=True)
class Outcome:
    """A verdict, the sentence that explains it, and the condition on the places of the effects."""

    verdict: str
    because: str
    holds: Callable[[Places], bool]


@dataclass(frozen=True)
class Rule:
    """text: the rule in words. bounds: equivalence bounds by kind of effect. outcomes: the first that holds is the result."""

    text: str
    bounds: dict[str, tuple[float, float]]
    outcomes: tuple[Outcome, ...]

    def apply(self, effects: Effects, stretch: float = 1.0) -> Outcome | None:
        """The first outcome that holds, or None."""
        places = {kind: [one.place(self.bounds[kind], stretch) for one in some] for kind, some in effects.items()}
        return next((outcome for outcome in self.outcomes if outcome.holds(places)), None)

    def confidence(self, effects: Effects) -> float | None:
        """See `Conclusion`; by bisection over the stretch of the intervals."""
        outcome = self.apply(effects)
        if outcome is None:
            return None
        low, high = 1.0, MAX_STRETCH
        for _ in range(30):
            middle = (low + high) / 2
            stretched = self.apply(effects, middle)
            if stretched is not None and stretched.verdict == outcome.verdict:
                low = middle
            else:
                high = middle
        return float(1 - 2 * stats.norm.sf(intervals.Z * low))


def decide(letter: str, claim: str, measured: Measured, sample: bool = False) -> Conclusion:
    """Apply the rule of a claim to its effects.

    Args:
        sample: whether the images are the embedded sample of drawn portraits, which test no claim about faces.
    """
    rule = RULES[letter]
    if measured.untested:
        return Conclusion(letter, claim, NOT_TESTED, measured.text, measured.untested, rule.text)
    outcome = rule.apply(measured.effects)
    verdict, because = (INCONCLUSIVE, measured.otherwise) if outcome is None else (outcome.verdict, outcome.because)
    if sample:
        because = f"The images are drawn: they show nothing about faces. (The rule gives: {verdict}. {because})"
        return Conclusion(letter, claim, NOT_TESTED, measured.text, because, rule.text)
    return Conclusion(letter, claim, verdict, measured.text, because, rule.text, rule.confidence(measured.effects))


def all_in(places: Sequence[str], *wanted: str) -> bool:
    """Whether there are places and all are among those wanted."""
    return bool(places) and all(place in wanted for place in places)


def _some_spread(at: Places, wanted: str) -> bool:
    return any(all_in(at[name], wanted) for name in SPREAD)


RULES = {
    "a": Rule(
        f"Effects: the paired difference of accuracies from each other row; it matters from {percent(POINTS, 0)} on. Supported if every interval lies "
        f"above {percent(POINTS, 0)} and that of the accuracy is not entirely more than {percent(POINTS, 0)} below the paper's accuracy; refuted if an interval "
        f"lies below −{percent(POINTS, 0)}; no difference that matters if an interval lies within ± {percent(POINTS, 0)}.",
        {"gap": (-POINTS, POINTS), "published": (-POINTS, POINTS)},
        (
            Outcome(REFUTED, "Another row is better.", lambda at: BELOW in at["gap"]),
            Outcome(
                NO_DIFFERENCE,
                "Another row is as good for practical purposes.",
                lambda at: ALIKE in at["gap"] or SMALL in at["gap"],
            ),
            Outcome(
                SUPPORTED,
                "Better than all other rows, and the paper's accuracy is not excluded.",
                lambda at: all_in(at["gap"], ABOVE) and BELOW not in at["published"],
            ),
        ),
    ),
    "b": Rule(
        f"Tested if cross entropy learns: its interval lies above {percent(0.5 + COIN, 0)}. Effect: the accuracy of BCE, with a decision at logit "
        f"> 0; within 50 ± {percent(COIN, 0)} it is chance for practical purposes. Supported if the interval lies within these bounds and "
        "includes 50 % (for practical purposes, though not chance, if it excludes 50 %); refuted if it lies above; inconclusive if it lies "
        "below, where the classes are separated in the wrong direction.",
        {"accuracy": (0.5 - COIN, 0.5 + COIN)},
        (
            Outcome(
                REFUTED,
                "With a decision at logit > 0, BCE works; argmax over its one logit always predicts real.",
                lambda at: all_in(at["accuracy"], ABOVE),
            ),
            Outcome(
                SUPPORTED,
                "BCE is at chance even with a decision at logit > 0.",
                lambda at: all_in(at["accuracy"], ALIKE),
            ),
            Outcome(PRACTICALLY, "BCE is of no use, though not at chance.", lambda at: all_in(at["accuracy"], SMALL)),
        ),
    ),
    "c": Rule(
        f"Effect: the ROC AUC, in either direction. Within 0.5 ± {SEPARATION} the separation is of no use: a threshold is then correct for 61 % of "
        "images at most. Supported if all intervals lie within these bounds (for practical purposes, though not chance, if one excludes "
        "0.5); refuted if one lies entirely outside.",
        {"area": (0.5 - SEPARATION, 0.5 + SEPARATION)},
        (
            Outcome(
                REFUTED,
                "Fakes reconstruct better: the error separates the classes, in the reverse direction.",
                lambda at: BELOW in at["area"],
            ),
            Outcome(REFUTED, "The reconstruction error separates the classes.", lambda at: ABOVE in at["area"]),
            Outcome(
                SUPPORTED,
                "The reconstruction error does not depend on the class.",
                lambda at: all_in(at["area"], ALIKE),
            ),
            Outcome(
                PRACTICALLY,
                "The reconstruction error differs between the classes, but by too little to be of use.",
                lambda at: all_in(at["area"], ALIKE, SMALL),
            ),
        ),
    ),
    "d": Rule(
        "Only the autoencoder was run at two sizes. Effect: accuracy at the larger size minus that at the smaller; it matters from "
        f"{percent(POINTS, 0)} on. Supported if the interval lies above {percent(POINTS, 0)}; refuted if below −{percent(POINTS, 0)}; no difference that matters if "
        f"within ± {percent(POINTS, 0)}. The decision threshold differs as well, so the ROC AUC is also given.",
        {"gap": (-POINTS, POINTS)},
        (
            Outcome(SUPPORTED, "The larger size is more accurate.", lambda at: all_in(at["gap"], ABOVE)),
            Outcome(REFUTED, "The smaller size is more accurate.", lambda at: all_in(at["gap"], BELOW)),
            Outcome(NO_DIFFERENCE, "Both sizes are equally accurate.", lambda at: all_in(at["gap"], ALIKE, SMALL)),
        ),
    ),
    "e": Rule(
        "Effects: the share of real images' maps in the face ellipse, minus the ellipse's share of the image, which matters from "
        f"{MASS} on; and Cliff's delta of the intensity of fake against real images' maps, which matters from {NEGLIGIBLE} on. Supported if the "
        "interval of the share lies above its bounds and those of intensity lie below theirs for every target class; refuted if both "
        "are the reverse; no different from chance if the interval of the share lies within its bounds.",
        {"mass": (-MASS, MASS), "intensity": (-NEGLIGIBLE, NEGLIGIBLE)},
        (
            Outcome(
                SUPPORTED,
                "The maps lie on the face and are more intense for every target class.",
                lambda at: all_in(at["mass"], ABOVE) and all_in(at["intensity"], BELOW),
            ),
            Outcome(
                REFUTED,
                "The maps lie off the face and are less intense for every target class.",
                lambda at: all_in(at["mass"], BELOW) and all_in(at["intensity"], ABOVE),
            ),
            Outcome(
                LIKE_CHANCE,
                "The maps lie on the face no more and no less than an even map, within the bounds.",
                lambda at: all_in(at["mass"], ALIKE, SMALL),
            ),
        ),
    ),
    "f": Rule(
        f"Effects: Cliff's delta of fake against real images, which matters from {NEGLIGIBLE} on. Supported if, for every target class, the interval "
        "of a measure of spread lies above the bounds and that of intensity below them; refuted if both are the reverse, or if a statistic "
        "lies above for one target class and below for another: then the target class makes the difference, not the image; no difference "
        "that matters if all intervals lie within the bounds.",
        dict.fromkeys((*SPREAD, "intensity"), (-NEGLIGIBLE, NEGLIGIBLE)),
        (
            Outcome(
                SUPPORTED,
                "The maps are more spread and less intense for every target class.",
                lambda at: _some_spread(at, ABOVE) and all_in(at["intensity"], BELOW),
            ),
            Outcome(
                REFUTED,
                "The maps are less spread and more intense for every target class.",
                lambda at: _some_spread(at, BELOW) and all_in(at["intensity"], ABOVE),
            ),
            Outcome(
                REFUTED,
                "The sign changes with the target class: the target makes the difference, not the image.",
                lambda at: any(ABOVE in some and BELOW in some for some in at.values()),
            ),
            Outcome(
                NO_DIFFERENCE,
                "The maps of both classes are equally spread and equally intense.",
                lambda at: all(all_in(some, ALIKE, SMALL) for some in at.values()),
            ),
        ),
    ),
    "g": Rule(
        "Effect: Spearman's rho of held-out log density and map entropy among fakes. Supported if the interval lies above "
        f"{EXPLAINS} or below −{EXPLAINS}; refuted if it lies within ± {EXPLAINS}.",
        {"rho": (-EXPLAINS, EXPLAINS)},
        (
            Outcome(SUPPORTED, "Density and spread are correlated.", lambda at: all_in(at["rho"], ABOVE, BELOW)),
            Outcome(
                REFUTED,
                "Density explains less than 9 % of the variance in the ranks of the maps' spread.",
                lambda at: all_in(at["rho"], ALIKE, SMALL),
            ),
        ),
    ),
}
