"""Apply the rules of rules.yaml: which measured effects support or refute a claim of the paper.

Rules compare 95 % intervals with equivalence bounds, never point values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources

import yaml
from scipy import stats

from dfganext.evaluation import intervals
from dfganext.evaluation.intervals import Interval
from dfganext.report import text

INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested"
MAX_STRETCH = 3.0
"""Intervals are widened at most by this factor, to a confidence level of 1 - 4e-9."""


@dataclass(frozen=True)
class Conclusion:
    """What the results say about one of the paper's claims.

    effect: the measured effects, as text.
    because: why the rule gives this verdict.
    rule: the rule, as text.
    confidence: the highest confidence level of the intervals, 0.95...1, at which the rule still gives this verdict, if any. For
        other levels than 95 %, both sides of an interval are stretched by the ratio of the normal quantiles.
    """

    letter: str
    claim: str
    verdict: str
    effect: str
    because: str
    rule: str
    confidence: float | None = None


@dataclass(frozen=True)
class Effect:
    """A measured effect and its 95 % interval; name distinguishes effects of one kind."""

    value: float
    interval: Interval
    name: str = ""

    def lies(self, place: str, bounds: list[float], stretch: float = 1.0) -> bool:
        """Whether the interval, with both sides stretched, lies "above", "below", "within" or "central": see rules.yaml."""
        low, high = (self.value + stretch * (end - self.value) for end in self.interval)
        within = bounds[0] <= low and high <= bounds[1]
        return {
            "above": low > bounds[1],
            "below": high < bounds[0],
            "within": within,
            "central": within and low <= sum(bounds) / 2 <= high,
        }[place]

    def number(self, digits: int = 3, sign: bool = False) -> str:
        """0.500 (0.400 … 0.600); with `sign`, +0.500."""
        return f"{text.number(self.value, digits, sign)} ({text.span(self.interval, digits)})"

    def percent(self) -> str:
        """50.00 % (40.0 … 60.0 %)."""
        return f"{text.percent(self.value)} ({text.percents(self.interval)})"

    def points(self) -> str:
        """+50.00 points (40.0 … 60.0)."""
        return text.points(self.value, self.interval)


Effects = dict[str, list[Effect]]
"""By kind."""


@dataclass(frozen=True)
class Measured:
    """Effects and their text. untested: why the claim cannot be tested."""

    effects: Effects = field(default_factory=dict)
    text: str = ""
    untested: str = ""


@dataclass(frozen=True)
class Outcome:
    """See rules.yaml."""

    verdict: str
    because: str
    when: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Rule:
    """See rules.yaml."""

    text: str
    bounds: dict[str, list[float]]
    outcomes: list[Outcome]

    def apply(self, effects: Effects, stretch: float = 1.0) -> Outcome:
        """The first outcome that holds."""

        def holds(kind: str, condition: str) -> bool:
            quantifier, place = condition.split()
            found = [one.lies(place, self.bounds[kind], stretch) for one in effects[kind]]
            return any(found) if quantifier == "any" else bool(found) and all(found)

        def meets(conditions: dict[str, str]) -> bool:
            return all(holds(kind, one) for kind, both in conditions.items() for one in both.split(" and "))

        return next(one for one in self.outcomes if not one.when or any(map(meets, one.when)))

    def confidence(self, effects: Effects) -> float | None:
        """See `Conclusion`; by bisection over the stretch of the intervals."""
        verdict = self.apply(effects).verdict
        if verdict == INCONCLUSIVE:
            return None
        low, high = 1.0, MAX_STRETCH
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.apply(effects, middle).verdict == verdict else (low, middle)
        return float(1 - 2 * stats.norm.sf(intervals.Z * low))


def decide(letter: str, claim: str, measured: Measured, sample: bool = False) -> Conclusion:
    """Apply the rule of a claim to its effects.

    Args:
        sample: whether the images are the embedded sample of drawn portraits, which test no claim about faces.
    """
    rule, confidence = RULES[letter], None
    verdict, because = NOT_TESTED, measured.untested
    if not measured.untested:
        outcome = rule.apply(measured.effects)
        if sample:
            because = f"The images are drawn: they show nothing about faces. (The rule gives: {outcome.verdict}. {outcome.because})"
        else:
            verdict, because, confidence = outcome.verdict, outcome.because, rule.confidence(measured.effects)
    return Conclusion(letter, claim, verdict, measured.text, because, rule.text, confidence)


def _read() -> dict[str, Rule]:
    content = yaml.safe_load(resources.files("dfganext.report").joinpath("rules.yaml").read_text(encoding="utf-8"))
    return {
        letter: Rule(rule["text"], rule["bounds"], [Outcome(**one) for one in rule["outcomes"]])
        for letter, rule in content.items()
    }


RULES = _read()
