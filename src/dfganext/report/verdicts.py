"""Measure the effects that test the paper's claims, (a) to (g); `rules` decides what they mean."""

from __future__ import annotations

from typing import Any

from dfganext.evaluation import intervals
from dfganext.explain.statistics import Ellipse
from dfganext.report.evidence import Evidence
from dfganext.report.rules import (
    ABOVE,
    BELOW,
    COIN,
    RULES,
    SPREAD,
    Conclusion,
    Effect,
    Measured,
    all_in,
    decide,
)
from dfganext.report.table1 import Row, compare, groups_of, is_fake, roc_auc_difference
from dfganext.report.text import number, percent, percents, span

COMPETENT = 0.75
"""If the ROC AUC may be lower than this, the classifier has found no evidence that a map could show."""
TARGETS = ("target fake", "target real", "target own class")


def all_claims(evidence: Evidence) -> list[Conclusion]:
    """A conclusion on each of the paper's claims, (a) to (g)."""
    measures = {"a": _best, "b": _bce, "c": _autoencoder, "d": _size, "e": _real_maps, "f": _fake_maps, "g": _density}
    return [
        decide(letter, claim, measures[letter](evidence), evidence.sample)
        for letter, claim in evidence.paper["claims"].items()
    ]


def _best(evidence: Evidence) -> Measured:
    row = evidence.row("convnext_ce")
    if not row.records:
        return Measured(untested="There is no evaluation of a ConvNeXt with cross entropy: run `make table1`.")
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
    otherwise = "Not every condition is met."
    if published.place(RULES["a"].bounds["published"]) == BELOW:
        otherwise += f" {percent(level)} lies above the interval."
    ties = [name for name, place in places.items() if place != ABOVE]
    if ties:
        otherwise += f" The interval does not show a difference that matters from: {', '.join(ties)}."
    untested = _why_best_is_untested(evidence, [] if BELOW in places.values() else missing)
    return Measured({"gap": effects, "published": [published]}, text, untested, otherwise)


def _why_best_is_untested(evidence: Evidence, missing: list[str]) -> str:
    network = evidence.settings.convnext
    if not network.architecture.startswith("convnext_tiny"):
        return f"The network here is {network.architecture}, not ConvNeXt-T."
    if network.weights == "random":
        return "The paper fine-tunes ImageNet weights; here training started from random weights."
    if missing:
        return f"No evaluation with the same seed: {'; '.join(missing)}. `make table1` runs what is missing."
    return ""


def _bce(evidence: Evidence) -> Measured:
    ce, bce, argmax = (evidence.row(f"convnext_{name}") for name in ("ce", "bce", "bce_argmax"))
    if not bce.records or not ce.records:
        return Measured(untested="Both losses are needed on the same data: run `make table1`.")
    text = f"BCE {percent(bce.mean)} ({percents(bce.interval)}), by argmax {percent(argmax.mean)}; cross entropy {percent(ce.mean)}"
    found = compare(ce, bce)
    if found is not None:
        text += f"; difference {percent(found['difference'], sign=True)} ({percents(found['interval'])}), McNemar p = {found['p']:.2g}"
    effect = Effect(bce.mean, bce.interval)
    untested = "The network learnt too little with cross entropy as well." if ce.interval[0] < 0.5 + COIN else ""
    otherwise = "The interval is too wide to exclude either."
    if effect.place(RULES["b"].bounds["accuracy"]) == BELOW:
        otherwise = "BCE is worse than chance: neither at chance nor of use."
    return Measured({"accuracy": [effect]}, text, untested, otherwise)


def _autoencoder(evidence: Evidence) -> Measured:
    rows = [row for row in evidence.rows if row.key.startswith("autoencoder") and row.records]
    scores = [row.records[0].scores["autoencoder"] for row in rows] or [evidence.evaluate["autoencoder"]]
    effects = [Effect(one["roc_auc"], one["intervals"]["roc_auc"]) for one in scores]
    text = "; ".join(
        f"ROC AUC {number(one.value)} ({span(one.interval)}), reversed {number(1 - one.value)}" for one in effects
    )
    return Measured({"area": effects}, text, otherwise="The intervals are too wide to exclude either.")


def _size(evidence: Evidence) -> Measured:
    large, small = evidence.row("autoencoder_first"), evidence.row("autoencoder_second")
    settings = evidence.settings.table1
    found = compare(large, small)
    if found is None:
        return Measured(untested="Both sizes are needed on the same data: run `make table1`.")
    if settings.first.size <= settings.second.size:
        return Measured(untested="table1.first must be the larger of the two.")
    text = (
        f"{settings.first.size} px {percent(large.mean)}, {settings.second.size} px {percent(small.mean)}: "
        f"{percent(found['difference'], sign=True)} ({percents(found['interval'])}), seed {found['seed']}"
    )
    gap = roc_auc_difference(large, small)
    if gap is not None:
        text += f"; ROC AUC {number(gap['difference'], sign=True)} ({span(gap['interval'])})"
    effect = Effect(found["difference"], found["interval"])
    otherwise = "The interval neither shows nor excludes a difference in accuracy that matters."
    return Measured({"gap": [effect]}, text, otherwise=otherwise)


def _real_maps(evidence: Evidence) -> Measured:
    face = evidence.settings.gradcam.face
    chance = Ellipse(face.x, face.y, face.width, face.height).area
    maps = evidence.maps[(evidence.maps.label == "real") & (evidence.maps.target == "real")].dropna(subset="face_mass")
    if not len(maps):
        return Measured(untested="The maps of all real images are blank.")
    beyond = maps.face_mass.to_numpy() - chance
    mass = Effect(float(beyond.mean()), intervals.mean(beyond, groups_of(maps)))
    intensity = _deltas(evidence, "mean")
    text = (
        f"mass in the face {number(chance + mass.value)}, {number(mass.value, sign=True)} ({span(mass.interval)}) over the "
        f"ellipse's {number(chance)}; intensity, fake against real: {_listed(intensity)}"
    )
    places = [one.place(RULES["e"].bounds["intensity"]) for one in intensity]
    where = {ABOVE: "on the face", BELOW: "off the face"}.get(mass.place(RULES["e"].bounds["mass"]))
    otherwise = f"The maps lie {where}; " if where else "Whether the maps lie on the face is uncertain; "
    if ABOVE in places and BELOW in places:
        otherwise += "the sign of the difference in intensity changes with the target class."
    elif not all_in(places, BELOW):
        otherwise += "intensity does not differ as claimed for every target class."
    else:
        otherwise += "intensity differs as claimed."
    return Measured({"mass": [mass], "intensity": intensity}, text, _incompetent(evidence), otherwise)


def _fake_maps(evidence: Evidence) -> Measured:
    effects = {name: _deltas(evidence, name) for name in SPREAD} | {"intensity": _deltas(evidence, "mean")}
    text = f"entropy: {_listed(effects['entropy'])}; intensity: {_listed(effects['intensity'])}"
    otherwise = "The intervals neither show nor exclude all differences that the claim needs."
    return Measured(effects, text, _incompetent(evidence), otherwise)


def _density(evidence: Evidence) -> Measured:
    effects, texts = {}, []
    for name, found in evidence.density_and_spread.items():
        if found["spearman"] is not None:
            effects[name] = Effect(found["spearman"], [found["low"], found["high"]])
            texts.append(
                f"{name}: rho {number(found['spearman'], sign=True)} ({span(effects[name].interval)}), {found['images']} images"
            )
    text = "; ".join(texts)
    if "fake" not in effects:
        return Measured(text=text, untested="Too few fakes have maps, or all their maps have the same entropy.")
    otherwise = "The interval is too wide to decide."
    return Measured({"rho": [effects["fake"]]}, text, _incompetent(evidence), otherwise)


def _against_spectrum(evidence: Evidence, row: Row) -> dict[str, Any]:
    """Accuracy with cross entropy minus that of the spectrum baseline.

    The network is this workspace's if it was trained with cross entropy, otherwise that of the row's first record.
    """
    table = evidence.predictions if evidence.settings.loss == "ce" else row.records[0].predictions
    table = table.drop(columns="p_fake", errors="ignore").merge(
        evidence.baseline_predictions[["path", "p_fake"]], on="path"
    )
    fake = is_fake(table)
    ours, theirs = (table.logit > 0).to_numpy() == fake, (table.p_fake > 0.5).to_numpy() == fake
    return intervals.accuracy_difference(ours, theirs, groups_of(table))


def _incompetent(evidence: Evidence) -> str:
    """Why the maps of this classifier show nothing; empty if they may."""
    low = evidence.evaluate["convnext"]["intervals"]["roc_auc"][0]
    if low >= COMPETENT:
        return ""
    return f"The classifier's ROC AUC may be as low as {number(low)}: if it found no evidence, its maps show none."


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
    return ", ".join(f"{one.name} {number(one.value, 2, sign=True)} ({span(one.interval, 2)})" for one in deltas)
