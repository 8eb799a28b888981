"""What the data at hand say of each of the paper's claims: supported, refuted, inconclusive, or not tested.

Each rule is stated in `Verdict.rule` and applied to effect sizes with 95 % intervals, never to point values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dfganext.evaluation import intervals
from dfganext.evaluation.intervals import Interval
from dfganext.explain import statistics
from dfganext.report.evidence import Evidence
from dfganext.report.table1 import Row, auc_difference, compare, groups_of, is_fake
from dfganext.report.text import number, percent, percents
from dfganext.report.text import span as shown

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED = "supported", "refuted", "inconclusive", "not tested"

NO_SEPARATION = 0.05
"""A ROC-AUC this near to 0.5, either side, separates nothing worth the name."""
EXPLAINS = 0.3
"""Spearman's rho from which one thing may be said to explain another: nine per cent of the variance of ranks."""
COMPETENT = 0.75
"""Where the ROC-AUC may be lower than this, a classifier has found no evidence whose place a map could show."""
LEARNT = 0.6
"""Where accuracy with cross entropy may be lower than this, no other loss can be said to fail beside it."""
SPREAD = ("entropy", "effective_area", "above_half")
TARGETS = ("target fake", "target real", "target own class")


@dataclass(frozen=True)
class Verdict:
    """letter and claim are the paper's; effect says what was measured, because in a sentence how the rule was met."""

    letter: str
    claim: str
    verdict: str
    effect: str
    because: str
    rule: str


@dataclass(frozen=True)
class Delta:
    """Cliff's delta of fake against real images for one statistic of their maps, both mapped for `target`."""

    target: str
    delta: float
    interval: Interval
    p_holm: float

    @property
    def sign(self) -> int:
        """1 or -1, or 0 where the difference is not certain."""
        return int(np.sign(self.delta)) if self.p_holm < 0.05 else 0


def all_claims(evidence: Evidence) -> list[Verdict]:
    """A verdict on each of the paper's claims, (a) to (g)."""
    judges = {"a": _best, "b": _bce, "c": _autoencoder, "d": _size, "e": _real_maps, "f": _fake_maps, "g": _density}
    verdicts = []
    for letter, claim in evidence.paper["claims"].items():
        verdict, effect, because, rule = judges[letter](evidence)
        if evidence.sample and verdict != NOT_TESTED:
            because = (
                f"The images are drawn: nothing follows from them about faces. (By the rule: {verdict}. {because})"
            )
            verdict = NOT_TESTED
        verdicts.append(Verdict(letter, claim, verdict, effect, because, rule))
    return verdicts


Finding = tuple[str, str, str, str]
"""verdict, effect, because, rule"""


def _best(evidence: Evidence) -> Finding:
    rule = (
        "Supported if the accuracy exceeds that of every other row, the interval of each paired difference above 0, and the "
        "paper's figure lies in its interval; refuted if another row is better, its interval below 0."
    )
    row = evidence.row("convnext_ce")
    if not row.records:
        return NOT_TESTED, "", "No ConvNeXt with cross entropy is on record: `make table1`.", rule
    effect = f"accuracy {percent(row.mean)} ({percents(row.interval)})"
    others = {
        f"{other.model}, {other.variation}": compare(row, other)
        for other in evidence.rows
        if other.key not in (row.key, "convnext_bce_argmax")
    }
    gaps = {name: found for name, found in others.items() if found is not None}
    missing = [name for name in others if name not in gaps]
    gaps["the spectrum baseline"] = _against_spectrum(evidence, row)
    effect += "".join(
        f"; {percent(found['difference'], sign=True)} ({percents(found['interval'])}) over {name}"
        for name, found in gaps.items()
    )
    chosen = evidence.settings.convnext
    if not chosen.architecture.startswith("convnext_tiny"):
        return NOT_TESTED, effect, f"The network here is {chosen.architecture}, not ConvNeXt-T.", rule
    if chosen.weights == "random":
        return NOT_TESTED, effect, "The paper fine-tunes ImageNet weights; here training began with random ones.", rule
    level = evidence.paper["table1"]["convnext_ce"]["accuracy"]
    reached = row.interval[1] >= level
    if any(found["interval"][1] < 0 for found in gaps.values()):
        return REFUTED, effect, "Another row is better.", rule
    if missing:
        because = f"Not on record with the same seed: {'; '.join(missing)}. `make table1` runs what is missing."
        return NOT_TESTED, effect, because, rule
    if all(found["interval"][0] > 0 for found in gaps.values()) and reached:
        return SUPPORTED, effect, f"Better than all others, and {percent(level)} is within reach.", rule
    level_text = "" if reached else f" {percent(level)} lies above the interval."
    ties = [name for name, found in gaps.items() if found["interval"][0] <= 0]
    tie_text = f" No difference is certain from: {', '.join(ties)}." if ties else ""
    return INCONCLUSIVE, effect, f"Not every part holds.{level_text}{tie_text}", rule


def _bce(evidence: Evidence) -> Finding:
    rule = (
        "Tested where cross entropy learns, its interval above 60 %. Supported if the interval of BCE, decided at logit > 0, "
        "holds 50 %; refuted if it lies above; inconclusive if below, where the classes part the wrong way round."
    )
    ce, bce, argmax = (evidence.row(f"convnext_{name}") for name in ("ce", "bce", "bce_argmax"))
    if not bce.records or not ce.records:
        return NOT_TESTED, "", "Both losses are needed on the same data: `make table1`.", rule
    effect = f"BCE {percent(bce.mean)} ({percents(bce.interval)}), by argmax {percent(argmax.mean)}; cross entropy {percent(ce.mean)}"
    found = compare(ce, bce)
    if found is not None:
        effect += f"; difference {percent(found['difference'], sign=True)} ({percents(found['interval'])}), McNemar p = {found['p']:.2g}"
    if ce.interval[0] < LEARNT:
        return NOT_TESTED, effect, "With cross entropy too the network learnt too little here to tell.", rule
    if bce.interval[0] > 0.5:
        because = (
            f"Decided rightly, BCE works; argmax over its one logit always says real and scores {percent(argmax.mean)}."
        )
        return REFUTED, effect, because, rule
    if bce.interval[1] < 0.5:
        return INCONCLUSIVE, effect, "BCE is surely worse than the flip of a coin: neither at chance nor of use.", rule
    return SUPPORTED, effect, "BCE is at chance although decided rightly.", rule


def _autoencoder(evidence: Evidence) -> Finding:
    rule = (
        f"By ROC-AUC, in either direction. Supported if all intervals lie within 0.5 ± {NO_SEPARATION}; refuted if one lies "
        "wholly outside."
    )
    rows = [row for row in evidence.rows if row.key.startswith("autoencoder") and row.records]
    figures = [row.records[0].scores["autoencoder"] for row in rows] or [evidence.evaluate["autoencoder"]]
    spans = [figure["intervals"]["roc_auc"] for figure in figures]
    effect = "; ".join(
        f"ROC-AUC {number(figure['roc_auc'])} ({shown(span)}), reversed {number(figure['reversed']['roc_auc'])}"
        for figure, span in zip(figures, spans, strict=True)
    )
    low, high = 0.5 - NO_SEPARATION, 0.5 + NO_SEPARATION
    if any(span[1] < low for span in spans):
        return REFUTED, effect, "Fakes reconstruct better, so the classes part, but the other way round.", rule
    if any(span[0] > high for span in spans):
        return REFUTED, effect, "The reconstruction error tells the classes apart.", rule
    if all(low <= span[0] and span[1] <= high for span in spans):
        return SUPPORTED, effect, "The reconstruction error says nothing of the class.", rule
    return INCONCLUSIVE, effect, "The intervals are too wide to exclude either.", rule


def _size(evidence: Evidence) -> Finding:
    rule = (
        "Only the autoencoder was run at two sizes. Supported if the larger size is more accurate, the interval of the "
        "paired difference above 0; refuted if below. Its threshold differs as well, so ROC-AUC is given beside it."
    )
    large, small = evidence.row("autoencoder_first"), evidence.row("autoencoder_second")
    chosen = evidence.settings.table1
    found = compare(large, small)
    if found is None:
        return NOT_TESTED, "", "Both sizes are needed on the same data: `make table1`.", rule
    if chosen.first.size <= chosen.second.size:
        return NOT_TESTED, "", "table1.first is to be the larger of the two.", rule
    effect = (
        f"{chosen.first.size} px {percent(large.mean)}, {chosen.second.size} px {percent(small.mean)}: "
        f"{percent(found['difference'], sign=True)} ({percents(found['interval'])})"
    )
    gap = auc_difference(large, small)
    if gap is not None:
        effect += f"; ROC-AUC {number(gap[0], sign=True)} ({shown(gap[1])})"
    if found["interval"][0] > 0:
        return SUPPORTED, effect, "The larger size is more accurate.", rule
    if found["interval"][1] < 0:
        return REFUTED, effect, "The smaller size is more accurate.", rule
    return INCONCLUSIVE, effect, "No difference in accuracy is certain.", rule


def _real_maps(evidence: Evidence) -> Finding:
    rule = (
        "Supported if the mass of real images' maps inside the face exceeds the ellipse's share of the image, and their "
        "intensity that of fake images' maps, for every target class; refuted if both are the reverse."
    )
    chosen = evidence.settings.gradcam.face
    chance = statistics.Ellipse(chosen.x, chosen.y, chosen.width, chosen.height).area
    maps = evidence.maps[(evidence.maps.label == "real") & (evidence.maps.target == "real")].dropna(subset="face_mass")
    own = maps.face_mass.to_numpy()
    if not len(own):
        return NOT_TESTED, "", "No real image has a map that is not blank.", rule
    span = intervals.mean(own - chance, maps.group.to_numpy())
    intensity = _deltas(evidence, "mean")
    effect = (
        f"mass in the face {number(own.mean())}, {number(float(np.mean(own - chance)), sign=True)} ({shown(span)}) over the "
        f"ellipse's {number(chance)}; "
        f"intensity, fake against real: {_listed(intensity)}"
    )
    if not _competent(evidence):
        return NOT_TESTED, effect, _incompetent(evidence), rule
    if span[0] > 0 and all(one.interval[1] < 0 for one in intensity):
        return SUPPORTED, effect, "On the face, and more intense whichever class is mapped.", rule
    if span[1] < 0 and all(one.interval[0] > 0 for one in intensity):
        return REFUTED, effect, "Off the face, and less intense whichever class is mapped.", rule
    return INCONCLUSIVE, effect, _mixed(span, intensity), rule


def _fake_maps(evidence: Evidence) -> Finding:
    rule = (
        "By Cliff's delta of fake against real images, Holm's p below 0.05. Supported if some measure of spread is larger and "
        "intensity lower for every target class; refuted if every target says the reverse, or targets contradict each "
        "other: then the maps differ by the class that is mapped, not by the image."
    )
    spread = {name: _deltas(evidence, name) for name in SPREAD}
    intensity = _deltas(evidence, "mean")
    effect = f"entropy: {_listed(spread['entropy'])}; intensity: {_listed(intensity)}"
    if not _competent(evidence):
        return NOT_TESTED, effect, _incompetent(evidence), rule
    signs = {name: _signs(rows) for name, rows in {**spread, "mean": intensity}.items()}
    if not any(any(one) for one in signs.values()):
        return INCONCLUSIVE, effect, "No difference is certain.", rule
    wider = any(all(sign > 0 for sign in signs[name]) for name in SPREAD)
    narrower = any(all(sign < 0 for sign in signs[name]) for name in SPREAD)
    if wider and all(sign < 0 for sign in signs["mean"]):
        return SUPPORTED, effect, "More spread and less intense whichever class is mapped.", rule
    if narrower and all(sign > 0 for sign in signs["mean"]):
        return REFUTED, effect, "Less spread and more intense whichever class is mapped.", rule
    if any(min(one) < 0 < max(one) for one in signs.values()):
        because = "The sign turns with the class that is mapped: what differs is the target, not the image."
        return REFUTED, effect, because, rule
    return INCONCLUSIVE, effect, "Some differences are certain, but not all that the claim needs.", rule


def _density(evidence: Evidence) -> Finding:
    rule = (
        f"By Spearman's rho of held-out log density and map entropy among fakes. Supported if |rho| is surely at least "
        f"{EXPLAINS}; refuted if surely below."
    )
    effects, spans = [], {}
    for name, found in evidence.density_and_spread.items():
        if found["spearman"] is not None:
            spans[name] = [found["low"], found["high"]]
            effects.append(
                f"{name}: rho {number(found['spearman'], sign=True)} ({shown(spans[name])}), {found['images']} images"
            )
    effect = "; ".join(effects)
    if "fake" not in spans:
        return NOT_TESTED, effect, "Too few fakes have maps that differ.", rule
    if not _competent(evidence):
        return NOT_TESTED, effect, _incompetent(evidence), rule
    low, high = spans["fake"]
    if low >= EXPLAINS or high <= -EXPLAINS:
        return SUPPORTED, effect, "Density and spread go together.", rule
    if max(abs(low), abs(high)) < EXPLAINS:
        return REFUTED, effect, "Density explains less than nine per cent of how the maps' spread ranks.", rule
    return INCONCLUSIVE, effect, "The interval is too wide to say.", rule


def _against_spectrum(evidence: Evidence, row: Row) -> dict[str, Any]:
    """Accuracy with cross entropy, of the network at hand or else of the first on record, less that of the spectrum baseline."""
    ours_at_hand = evidence.settings.loss == "ce"
    table = evidence.predictions if ours_at_hand else row.records[0].predictions
    table = table.drop(columns="p_fake", errors="ignore").merge(
        evidence.baseline_predictions[["path", "p_fake"]], on="path"
    )
    fake = is_fake(table)
    ours, theirs = (table.logit > 0).to_numpy() == fake, (table.p_fake > 0.5).to_numpy() == fake
    return intervals.accuracy_difference(ours, theirs, groups_of(table))


def _competent(evidence: Evidence) -> bool:
    return evidence.evaluate["convnext"]["intervals"]["roc_auc"][0] >= COMPETENT


def _incompetent(evidence: Evidence) -> str:
    low = evidence.evaluate["convnext"]["intervals"]["roc_auc"][0]
    return f"The classifier's ROC-AUC may be as low as {number(low)}: where it found nothing, a map shows nothing."


def _deltas(evidence: Evidence, statistic: str) -> list[Delta]:
    """One for each target with maps of both classes."""
    table = evidence.comparison[evidence.comparison.statistic == statistic].dropna(subset=["cliffs_delta"])
    found = table.set_index("comparison").to_dict(orient="index")
    return [
        Delta(
            target.removeprefix("target "),
            float(found[target]["cliffs_delta"]),
            [float(found[target]["low"]), float(found[target]["high"])],
            float(found[target]["p_holm"]),
        )
        for target in TARGETS
        if target in found
    ]


def _signs(deltas: list[Delta]) -> list[int]:
    return [one.sign for one in deltas] or [0]


def _mixed(span: Interval, intensity: list[Delta]) -> str:
    place = (
        "on the face"
        if span[0] > 0
        else "off the face"
        if span[1] < 0
        else "no more on the face than chance would have it"
    )
    signs = _signs(intensity)
    how = "intensity does not differ as claimed for every target class"
    if min(signs) < 0 < max(signs):
        how = "the sign of the difference in intensity turns with the class that is mapped"
    return f"The maps lie {place}; {how}."


def _listed(deltas: list[Delta]) -> str:
    return ", ".join(f"{one.target} {number(one.delta, 2, sign=True)} ({shown(one.interval, 2)})" for one in deltas)
