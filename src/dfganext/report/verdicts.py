"""What the results say of each of the paper's claims: supported, refuted, no different, inconclusive, or not tested.

A rule is data: effects, each with bounds within which it is too small to matter, and outcomes in order. One evaluator applies
all rules. They look at 95 % intervals, never at point values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from dfganext.evaluation import intervals
from dfganext.evaluation.intervals import Interval
from dfganext.explain import statistics
from dfganext.report.evidence import Evidence
from dfganext.report.table1 import Row, auc_difference, compare, groups_of, is_fake
from dfganext.report.text import number, percent, percents
from dfganext.report.text import span as shown

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED = "supported", "refuted", "inconclusive", "not tested"
PRACTICALLY = "supported for practical purposes, though not chance"
NO_DIFFERENCE, LIKE_CHANCE = "no difference that matters", "no different from chance"

# The smallest effects that matter
POINTS = 0.01
"""Difference of accuracies: one image in a hundred, twice the error that the paper reports for its best network."""
COIN = 0.1
"""Distance of an accuracy from 0.5: a detector that is right in fewer than 60 % of images is of no use."""
SEPARATION = 0.15
"""Distance of a ROC AUC from 0.5, to match: between two normal distributions of one width, 0.65 is an accuracy of 61 % at best."""
MASS = 0.05
"""Share of a map's sum that lies in the face beyond what an even map has there."""
NEGLIGIBLE = 0.147
"""Cliff's delta, below which a difference is called negligible (Romano et al. 2006)."""
EXPLAINS = 0.3
"""Spearman's rho from which one thing may be said to explain another: nine per cent of the variance of ranks."""

COMPETENT = 0.75
"""Where the ROC AUC may be lower than this, a classifier has found no evidence whose place a map could show."""
SPREAD = ("entropy", "effective_area", "above_half")
TARGETS = ("target fake", "target real", "target own class")

ABOVE, BELOW, SMALL, ALIKE, UNSURE = "above", "below", "small", "alike", "unsure"
MOST_STRETCH = 3.0
"""Intervals are widened by at most this, which is a confidence of 1 - 4e-9."""


@dataclass(frozen=True)
class Prediction:
    """letter and claim are the paper's; effect says what was measured, because in a sentence how the rule was met.

    confidence: the highest confidence level of the intervals, 0.95...1, at which the rule still gives this verdict; None where the
    verdict is inconclusive or not tested. Intervals of other levels are those of 95 %, either side stretched by the ratio of the
    normal quantiles.
    """

    letter: str
    claim: str
    verdict: str
    effect: str
    because: str
    rule: str
    confidence: float | None = None

    @property
    def kind(self) -> str:
        """The verdict as a name of a style."""
        return {PRACTICALLY: "practically", NO_DIFFERENCE: "no-difference", LIKE_CHANCE: "no-difference"}.get(
            self.verdict, self.verdict.replace(" ", "-")
        )


@dataclass(frozen=True)
class Effect:
    """A measured effect and its 95 % interval; name tells effects of one kind apart."""

    value: float
    interval: Interval
    name: str = ""

    def place(self, bounds: tuple[float, float], stretch: float = 1.0) -> str:
        """Where the interval, either side stretched, lies against equivalence bounds.

        ABOVE or BELOW both bounds; SMALL: within them, their middle excluded; ALIKE: within them, their middle held; UNSURE: a bound
        lies inside the interval.
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
class Outcome:
    """A verdict, given where `holds` of the effects' places, and the sentence that says why."""

    verdict: str
    because: str
    holds: Callable[[Places], bool]


@dataclass(frozen=True)
class Rule:
    """text states the rule; bounds are the equivalence bounds of each kind of effect; of the outcomes the first that holds counts."""

    text: str
    bounds: dict[str, tuple[float, float]]
    outcomes: tuple[Outcome, ...]

    def apply(self, effects: Effects, stretch: float = 1.0) -> Outcome | None:
        """The first outcome that holds, None for none."""
        places = {kind: [one.place(self.bounds[kind], stretch) for one in some] for kind, some in effects.items()}
        return next((outcome for outcome in self.outcomes if outcome.holds(places)), None)

    def confidence(self, effects: Effects) -> float | None:
        """See `Prediction`."""
        outcome = self.apply(effects)
        if outcome is None:
            return None

        def kept(stretch: float) -> bool:
            found = self.apply(effects, stretch)
            return found is not None and found.verdict == outcome.verdict

        low, high = 1.0, MOST_STRETCH
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if kept(middle) else (low, middle)
        return float(1 - 2 * stats.norm.sf(intervals.Z * low))


@dataclass(frozen=True)
class Measured:
    """Effects of a claim, by kind. untested says why the claim cannot be tested, otherwise why no outcome of the rule holds."""

    effects: Effects = field(default_factory=dict)
    text: str = ""
    untested: str = ""
    otherwise: str = "An interval is too wide to say."


def every(places: Sequence[str], *wanted: str) -> bool:
    """Whether there are places and all are among those wanted."""
    return bool(places) and all(place in wanted for place in places)


def _of_spread(places: Places, wanted: str) -> bool:
    return any(every(places[name], wanted) for name in SPREAD)


def _turns(places: Places) -> bool:
    return any(ABOVE in some and BELOW in some for some in places.values())


RULES = {
    "a": Rule(
        f"A difference of accuracies matters from {percent(POINTS, 0)} on. Supported if each paired difference from another row surely exceeds "
        "that and the accuracy is not surely lower by more than that than the paper's figure; refuted if another row is surely better by "
        "more; no difference that matters if from some row it surely is less, either way.",
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
                "Better than all others, and the paper's figure is within reach.",
                lambda at: every(at["gap"], ABOVE) and BELOW not in at["published"],
            ),
        ),
    ),
    "b": Rule(
        f"Tested where cross entropy learns, its interval above {percent(0.5 + COIN, 0)}. The accuracy of BCE, decided at logit > 0, is chance for "
        f"practical purposes within 50 ± {percent(COIN, 0)}. Supported if its interval lies within (for practical purposes, though not chance, if "
        "that excludes 50 %); refuted if above; inconclusive if below, where the classes part the wrong way round.",
        {"accuracy": (0.5 - COIN, 0.5 + COIN)},
        (
            Outcome(
                REFUTED,
                "Decided rightly, BCE works; argmax over its one logit always says real.",
                lambda at: every(at["accuracy"], ABOVE),
            ),
            Outcome(SUPPORTED, "BCE is at chance although decided rightly.", lambda at: every(at["accuracy"], ALIKE)),
            Outcome(PRACTICALLY, "BCE is of no use, though not at chance.", lambda at: every(at["accuracy"], SMALL)),
        ),
    ),
    "c": Rule(
        f"By ROC AUC, in either direction: within 0.5 ± {SEPARATION} it separates nothing of use, for a threshold is then right in 61 % of images "
        "at best. Supported if all intervals lie within (for practical purposes, though not chance, if one excludes 0.5); refuted if one "
        "lies wholly outside.",
        {"area": (0.5 - SEPARATION, 0.5 + SEPARATION)},
        (
            Outcome(
                REFUTED,
                "Fakes reconstruct better, so the classes part, but the other way round.",
                lambda at: BELOW in at["area"],
            ),
            Outcome(REFUTED, "The reconstruction error tells the classes apart.", lambda at: ABOVE in at["area"]),
            Outcome(
                SUPPORTED, "The reconstruction error says nothing of the class.", lambda at: every(at["area"], ALIKE)
            ),
            Outcome(
                PRACTICALLY,
                "The reconstruction error differs between the classes, but by too little to be of use.",
                lambda at: every(at["area"], ALIKE, SMALL),
            ),
        ),
    ),
    "d": Rule(
        "Only the autoencoder was run at two sizes. A difference of accuracies matters from "
        f"{percent(POINTS, 0)} on. Supported if the larger size is surely more accurate by more than that; refuted if surely less; no difference that "
        "matters if surely closer. Its threshold differs as well, so ROC AUC is given beside it.",
        {"gap": (-POINTS, POINTS)},
        (
            Outcome(SUPPORTED, "The larger size is more accurate.", lambda at: every(at["gap"], ABOVE)),
            Outcome(REFUTED, "The smaller size is more accurate.", lambda at: every(at["gap"], BELOW)),
            Outcome(NO_DIFFERENCE, "Both sizes are as accurate.", lambda at: every(at["gap"], ALIKE, SMALL)),
        ),
    ),
    "e": Rule(
        f"Mass in the face matters from {MASS} beyond the ellipse's share of the image on, a difference in intensity from a Cliff's delta of {NEGLIGIBLE} "
        "on. Supported if the mass of real images' maps surely exceeds that, and their intensity that of fake images' maps for every target "
        "class; refuted if both are surely the reverse; no different from chance if the mass surely lies within the bounds.",
        {"mass": (-MASS, MASS), "intensity": (-NEGLIGIBLE, NEGLIGIBLE)},
        (
            Outcome(
                SUPPORTED,
                "On the face, and more intense whichever class is mapped.",
                lambda at: every(at["mass"], ABOVE) and every(at["intensity"], BELOW),
            ),
            Outcome(
                REFUTED,
                "Off the face, and less intense whichever class is mapped.",
                lambda at: every(at["mass"], BELOW) and every(at["intensity"], ABOVE),
            ),
            Outcome(
                LIKE_CHANCE,
                "The maps lie on the face as much as chance has it, within what matters.",
                lambda at: every(at["mass"], ALIKE, SMALL),
            ),
        ),
    ),
    "f": Rule(
        f"By Cliff's delta of fake against real images, which matters from {NEGLIGIBLE} on. Supported if some measure of spread is surely larger "
        "and intensity lower for every target class; refuted if both are surely the reverse, or targets surely contradict each other: then "
        "the maps differ by the class that is mapped, not by the image; no difference that matters if all surely lie within the bounds.",
        dict.fromkeys((*SPREAD, "intensity"), (-NEGLIGIBLE, NEGLIGIBLE)),
        (
            Outcome(
                SUPPORTED,
                "More spread and less intense whichever class is mapped.",
                lambda at: _of_spread(at, ABOVE) and every(at["intensity"], BELOW),
            ),
            Outcome(
                REFUTED,
                "Less spread and more intense whichever class is mapped.",
                lambda at: _of_spread(at, BELOW) and every(at["intensity"], ABOVE),
            ),
            Outcome(
                REFUTED,
                "The sign turns with the class that is mapped: what differs is the target, not the image.",
                _turns,
            ),
            Outcome(
                NO_DIFFERENCE,
                "The maps of both classes are as spread and as intense.",
                lambda at: all(every(some, ALIKE, SMALL) for some in at.values()),
            ),
        ),
    ),
    "g": Rule(
        "By Spearman's rho of held-out log density and map entropy among fakes. Supported if |rho| is surely above "
        f"{EXPLAINS}; refuted if surely below.",
        {"rho": (-EXPLAINS, EXPLAINS)},
        (
            Outcome(SUPPORTED, "Density and spread go together.", lambda at: every(at["rho"], ABOVE, BELOW)),
            Outcome(
                REFUTED,
                "Density explains less than nine per cent of how the maps' spread ranks.",
                lambda at: every(at["rho"], ALIKE, SMALL),
            ),
        ),
    ),
}


def all_claims(evidence: Evidence) -> list[Prediction]:
    """A verdict on each of the paper's claims, (a) to (g)."""
    measures = {"a": _best, "b": _bce, "c": _autoencoder, "d": _size, "e": _real_maps, "f": _fake_maps, "g": _density}
    return [
        decide(letter, claim, measures[letter](evidence), evidence.sample)
        for letter, claim in evidence.paper["claims"].items()
    ]


def decide(letter: str, claim: str, measured: Measured, sample: bool = False) -> Prediction:
    """Apply the rule of a claim to its effects.

    Args:
        sample: whether the images are drawn: then nothing is tested.
    """
    rule = RULES[letter]
    if measured.untested:
        return Prediction(letter, claim, NOT_TESTED, measured.text, measured.untested, rule.text)
    outcome = rule.apply(measured.effects)
    verdict, because = (INCONCLUSIVE, measured.otherwise) if outcome is None else (outcome.verdict, outcome.because)
    if sample:
        because = f"The images are drawn: nothing follows from them about faces. (By the rule: {verdict}. {because})"
        return Prediction(letter, claim, NOT_TESTED, measured.text, because, rule.text)
    return Prediction(letter, claim, verdict, measured.text, because, rule.text, rule.confidence(measured.effects))


def _best(evidence: Evidence) -> Measured:
    row = evidence.row("convnext_ce")
    if not row.records:
        return Measured(untested="No ConvNeXt with cross entropy is on record: `make table1`.")
    others = {
        f"{other.model}, {other.variation}": compare(row, other)
        for other in evidence.rows
        if other.key not in (row.key, "convnext_bce_argmax")
    }
    gaps = {name: found for name, found in others.items() if found is not None}
    missing = [name for name in others if name not in gaps]
    gaps["the spectrum baseline"] = _against_spectrum(evidence, row)
    level = evidence.paper["table1"]["convnext_ce"]["accuracy"]
    published = Effect(row.mean - level, [end - level for end in row.interval])
    effects = [Effect(found["difference"], found["interval"], name) for name, found in gaps.items()]
    text = f"accuracy {percent(row.mean)} ({percents(row.interval)})" + "".join(
        f"; {percent(one.value, sign=True)} ({percents(one.interval)}) over {one.name}" for one in effects
    )
    places = {one.name: one.place(RULES["a"].bounds["gap"]) for one in effects}
    chosen = evidence.settings.convnext
    untested = ""
    if not chosen.architecture.startswith("convnext_tiny"):
        untested = f"The network here is {chosen.architecture}, not ConvNeXt-T."
    elif chosen.weights == "random":
        untested = "The paper fine-tunes ImageNet weights; here training began with random ones."
    elif missing and BELOW not in places.values():
        untested = f"Not on record with the same seed: {'; '.join(missing)}. `make table1` runs what is missing."
    otherwise = "Not every part holds."
    if published.place(RULES["a"].bounds["published"]) == BELOW:
        otherwise += f" {percent(level)} lies above the interval."
    ties = [name for name, place in places.items() if place != ABOVE]
    if ties:
        otherwise += f" No difference that matters is certain from: {', '.join(ties)}."
    return Measured({"gap": effects, "published": [published]}, text, untested, otherwise)


def _bce(evidence: Evidence) -> Measured:
    ce, bce, argmax = (evidence.row(f"convnext_{name}") for name in ("ce", "bce", "bce_argmax"))
    if not bce.records or not ce.records:
        return Measured(untested="Both losses are needed on the same data: `make table1`.")
    text = f"BCE {percent(bce.mean)} ({percents(bce.interval)}), by argmax {percent(argmax.mean)}; cross entropy {percent(ce.mean)}"
    found = compare(ce, bce)
    if found is not None:
        text += f"; difference {percent(found['difference'], sign=True)} ({percents(found['interval'])}), McNemar p = {found['p']:.2g}"
    effect = Effect(bce.mean, bce.interval)
    untested = (
        "With cross entropy too the network learnt too little here to tell." if ce.interval[0] < 0.5 + COIN else ""
    )
    otherwise = "The interval is too wide to exclude either."
    if effect.place(RULES["b"].bounds["accuracy"]) == BELOW:
        otherwise = "BCE is surely worse than the flip of a coin: neither at chance nor of use."
    return Measured({"accuracy": [effect]}, text, untested, otherwise)


def _autoencoder(evidence: Evidence) -> Measured:
    rows = [row for row in evidence.rows if row.key.startswith("autoencoder") and row.records]
    figures = [row.records[0].scores["autoencoder"] for row in rows] or [evidence.evaluate["autoencoder"]]
    effects = [Effect(figure["roc_auc"], figure["intervals"]["roc_auc"]) for figure in figures]
    text = "; ".join(
        f"ROC AUC {number(one.value)} ({shown(one.interval)}), reversed {number(1 - one.value)}" for one in effects
    )
    return Measured({"area": effects}, text, otherwise="The intervals are too wide to exclude either.")


def _size(evidence: Evidence) -> Measured:
    large, small = evidence.row("autoencoder_first"), evidence.row("autoencoder_second")
    chosen = evidence.settings.table1
    found = compare(large, small)
    if found is None:
        return Measured(untested="Both sizes are needed on the same data: `make table1`.")
    if chosen.first.size <= chosen.second.size:
        return Measured(untested="table1.first must be the larger of the two.")
    text = (
        f"{chosen.first.size} px {percent(large.mean)}, {chosen.second.size} px {percent(small.mean)}: "
        f"{percent(found['difference'], sign=True)} ({percents(found['interval'])}), seed {found['seed']}"
    )
    gap = auc_difference(large, small)
    if gap is not None:
        text += f"; ROC AUC {number(gap[0], sign=True)} ({shown(gap[1])})"
    effect = Effect(found["difference"], found["interval"])
    return Measured(
        {"gap": [effect]}, text, otherwise="No difference in accuracy that matters is certain, nor excluded."
    )


def _real_maps(evidence: Evidence) -> Measured:
    chosen = evidence.settings.gradcam.face
    chance = statistics.Ellipse(chosen.x, chosen.y, chosen.width, chosen.height).area
    maps = evidence.maps[(evidence.maps.label == "real") & (evidence.maps.target == "real")].dropna(subset="face_mass")
    if not len(maps):
        return Measured(untested="No real image has a map that is not blank.")
    beyond = maps.face_mass.to_numpy() - chance
    mass = Effect(float(beyond.mean()), intervals.mean(beyond, groups_of(maps)))
    intensity = _deltas(evidence, "mean")
    text = (
        f"mass in the face {number(chance + mass.value)}, {number(mass.value, sign=True)} ({shown(mass.interval)}) over the "
        f"ellipse's {number(chance)}; intensity, fake against real: {_listed(intensity)}"
    )
    places = [one.place(RULES["e"].bounds["intensity"]) for one in intensity]
    where = {ABOVE: "on the face", BELOW: "off the face"}.get(mass.place(RULES["e"].bounds["mass"]))
    otherwise = f"The maps lie {where}; " if where else "Whether the maps lie on the face is not certain; "
    otherwise += (
        "the sign of the difference in intensity turns with the class that is mapped."
        if ABOVE in places and BELOW in places
        else "intensity does not differ as claimed for every target class."
        if not every(places, BELOW)
        else "intensity differs as claimed."
    )
    return Measured({"mass": [mass], "intensity": intensity}, text, _incompetent(evidence), otherwise)


def _fake_maps(evidence: Evidence) -> Measured:
    effects = {name: _deltas(evidence, name) for name in SPREAD} | {"intensity": _deltas(evidence, "mean")}
    text = f"entropy: {_listed(effects['entropy'])}; intensity: {_listed(effects['intensity'])}"
    otherwise = "Not all the differences that the claim needs are certain, nor are they excluded."
    return Measured(effects, text, _incompetent(evidence), otherwise)


def _density(evidence: Evidence) -> Measured:
    effects, texts = {}, []
    for name, found in evidence.density_and_spread.items():
        if found["spearman"] is not None:
            effects[name] = Effect(found["spearman"], [found["low"], found["high"]])
            texts.append(
                f"{name}: rho {number(found['spearman'], sign=True)} ({shown(effects[name].interval)}), {found['images']} images"
            )
    text = "; ".join(texts)
    if "fake" not in effects:
        return Measured(text=text, untested="Too few fakes have maps that differ.")
    return Measured({"rho": [effects["fake"]]}, text, _incompetent(evidence), "The interval is too wide to say.")


def _against_spectrum(evidence: Evidence, row: Row) -> dict[str, Any]:
    """Accuracy with cross entropy, of this workspace's network, or else of the first on record, less that of the spectrum baseline."""
    ours_at_hand = evidence.settings.loss == "ce"
    table = evidence.predictions if ours_at_hand else row.records[0].predictions
    table = table.drop(columns="p_fake", errors="ignore").merge(
        evidence.baseline_predictions[["path", "p_fake"]], on="path"
    )
    fake = is_fake(table)
    ours, theirs = (table.logit > 0).to_numpy() == fake, (table.p_fake > 0.5).to_numpy() == fake
    return intervals.accuracy_difference(ours, theirs, groups_of(table))


def _incompetent(evidence: Evidence) -> str:
    """Why maps of this classifier show nothing; empty where they may."""
    low = evidence.evaluate["convnext"]["intervals"]["roc_auc"][0]
    if low >= COMPETENT:
        return ""
    return f"The classifier's ROC AUC may be as low as {number(low)}: where it found nothing, a map shows nothing."


def _deltas(evidence: Evidence, statistic: str) -> list[Effect]:
    """Cliff's delta of fake against real images for one statistic of their maps, for each target with maps of both classes."""
    table = evidence.comparison[evidence.comparison.statistic == statistic].dropna(subset=["cliffs_delta"])
    found = table.set_index("comparison").to_dict(orient="index")
    return [
        Effect(
            float(found[target]["cliffs_delta"]),
            [float(found[target]["low"]), float(found[target]["high"])],
            target.removeprefix("target "),
        )
        for target in TARGETS
        if target in found
    ]


def _listed(deltas: list[Effect]) -> str:
    return ", ".join(f"{one.name} {number(one.value, 2, sign=True)} ({shown(one.interval, 2)})" for one in deltas)
