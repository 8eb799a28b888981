"""Measure the effects that test the paper's claims, (a) to (h); `rules` decides what they mean."""

from __future__ import annotations

from dfganext.evaluation import intervals
from dfganext.explain.statistics import area_of
from dfganext.report.evidence import Evidence, by_half
from dfganext.report.rules import RULES, Conclusion, Effect, Measured, decide
from dfganext.report.table1 import Row, by_logit, compare, roc_auc_difference
from dfganext.report.text import number, percent

COMPETENT = 0.75
"""If the ROC AUC may be lower than this, the classifier has found no evidence that a map could show."""
SPREAD = ("entropy", "effective_area", "above_half")
"""Statistics that measure how spread out a map is."""


def all_claims(evidence: Evidence) -> list[Conclusion]:
    """A conclusion on each of the paper's claims, (a) to (h)."""
    measures = {
        "a": _best,
        "b": _bce,
        "c": _autoencoder,
        "d": _size,
        "e": _real_maps,
        "f": _fake_maps,
        "g": _density,
        "h": _architectures,
    }
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
    missing = [name for name, found in others.items() if found is None]
    gaps = [Effect(found["difference"], found["interval"], name) for name, found in others.items() if found is not None]
    gaps.append(_gap_to_spectrum(evidence, row))
    level = evidence.paper["table1"]["convnext_ce"]["accuracy"]
    published = Effect(row.mean - level, [end - level for end in row.interval])
    over = [f"{gap.points()} over {gap.name}" for gap in gaps]
    text = "; ".join([f"accuracy {Effect(row.mean, row.interval).percent()}", *over])
    if any(gap.lies("below", RULES["a"].bounds["gap"]) for gap in gaps):
        missing = []  # the claim is refuted, whatever the missing rows show
    return Measured({"gap": gaps, "published": [published]}, text, _why_best_is_untested(evidence, missing))


def _gap_to_spectrum(evidence: Evidence, row: Row) -> Effect:
    """Accuracy with cross entropy minus that of the spectrum baseline.

    The network is this workspace's if it was trained with cross entropy, otherwise that of the row's first record.
    """
    table = evidence.predictions if evidence.settings.loss == "ce" else row.records[0].predictions
    table = table.drop(columns="p_fake", errors="ignore").merge(
        evidence.baseline_predictions[["path", "p_fake"]], on="path"
    )
    gap = intervals.accuracy_difference(by_logit(table), by_half(table), table.group.to_numpy())
    return Effect(gap["difference"], gap["interval"], "the spectrum baseline")


def _architectures(evidence: Evidence) -> Measured:
    own, *others = evidence.architectures
    compared = {other.model: compare(own, other) for other in others}
    missing = [name for name, found in compared.items() if found is None]
    gaps = [Effect(one["difference"], one["interval"], name) for name, one in compared.items() if one is not None]
    text = "; ".join(f"{gap.points()} over {gap.name}" for gap in gaps)
    if not own.model.startswith("convnext_tiny"):
        untested = f"The first of `architectures` is {own.model}, not ConvNeXt-T."
    elif evidence.settings.convnext.weights != "imagenet":
        untested = "The paper fine-tunes ImageNet weights; here training did not start from those of each architecture."
    elif missing or not gaps:
        untested = f"No evaluation with the same seed: {', '.join(missing)}. `make architectures` runs what is missing."
    else:
        untested = ""
    return Measured({"gap": gaps}, text, untested)


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
    effect = Effect(bce.mean, bce.interval)
    text = f"BCE {effect.percent()}, by argmax {percent(argmax.mean)}; cross entropy {percent(ce.mean)}"
    found = compare(ce, bce)
    if found is not None:
        gap = Effect(found["difference"], found["interval"])
        text += f"; difference {gap.points()}, McNemar p = {found['p']:.2g}"
    learnt = ce.interval[0] >= RULES["b"].bounds["accuracy"][1]
    untested = "" if learnt else "The network learnt too little with cross entropy as well."
    return Measured({"accuracy": [effect]}, text, untested)


def _autoencoder(evidence: Evidence) -> Measured:
    rows = [row for row in evidence.rows if row.key.startswith("autoencoder") and row.records]
    scores = [row.records[0].scores["autoencoder"] for row in rows] or [evidence.evaluate["autoencoder"]]
    areas = [Effect(one["roc_auc"], one["intervals"]["roc_auc"]) for one in scores]
    text = "; ".join(f"ROC AUC {area.number()}, reversed {number(1 - area.value)}" for area in areas)
    return Measured({"area": areas}, text)


def _size(evidence: Evidence) -> Measured:
    large, small = evidence.row("autoencoder_first"), evidence.row("autoencoder_second")
    sizes = evidence.settings.table1
    found, areas = compare(large, small), roc_auc_difference(large, small)
    if found is None or areas is None:
        return Measured(untested="Both sizes are needed on the same data: run `make table1`.")
    if sizes.first.size <= sizes.second.size:
        return Measured(untested="table1.first must be the larger of the two.")
    gap, gap_of_areas = (Effect(one["difference"], one["interval"]) for one in (found, areas))
    text = (
        f"{sizes.first.size} px {percent(large.mean)}, {sizes.second.size} px {percent(small.mean)}: "
        f"{gap.points()}, seed {found['seed']}; ROC AUC {gap_of_areas.number(sign=True)}"
    )
    return Measured({"gap": [gap]}, text)


def _real_maps(evidence: Evidence) -> Measured:
    chance = area_of(evidence.settings.gradcam.face)
    maps = evidence.maps[(evidence.maps.label == "real") & (evidence.maps.target == "real")].dropna(subset="face_mass")
    if not len(maps):
        return Measured(untested="The maps of all real images are blank.")
    beyond = maps.face_mass.to_numpy() - chance
    mass = Effect(float(beyond.mean()), intervals.mean(beyond, maps.group.to_numpy()))
    intensity = _deltas(evidence, "mean")
    text = (
        f"mass in the face {number(chance + mass.value)}, {mass.number(sign=True)} over the ellipse's {number(chance)}; "
        f"intensity, fake against real: {_listed(intensity)}"
    )
    return Measured({"mass": [mass], "intensity": intensity}, text, _incompetent(evidence))


def _fake_maps(evidence: Evidence) -> Measured:
    effects = {name: _deltas(evidence, name) for name in SPREAD} | {"intensity": _deltas(evidence, "mean")}
    text = f"entropy: {_listed(effects['entropy'])}; intensity: {_listed(effects['intensity'])}"
    return Measured(effects, text, _incompetent(evidence))


def _density(evidence: Evidence) -> Measured:
    effects, texts = {}, []
    for name, found in evidence.density_and_spread.items():
        if found["spearman"] is not None:
            effects[name] = Effect(found["spearman"], [found["low"], found["high"]])
            texts.append(f"{name}: rho {effects[name].number(sign=True)}, {found['images']} images")
    text = "; ".join(texts)
    if "fake" not in effects:
        return Measured(text=text, untested="Too few fakes have maps, or all their maps have the same entropy.")
    return Measured({"rho": [effects["fake"]]}, text, _incompetent(evidence))


def _incompetent(evidence: Evidence) -> str:
    """Why the maps of this classifier show nothing; empty if they may."""
    low = evidence.evaluate["convnext"]["intervals"]["roc_auc"][0]
    if low >= COMPETENT:
        return ""
    return f"The classifier's ROC AUC may be as low as {number(low)}: if it found no evidence, its maps show none."


def _deltas(evidence: Evidence, statistic: str) -> list[Effect]:
    """Cliff's delta of fake against real images for one statistic of their maps, for each target with maps of both classes."""
    rows = evidence.comparison[evidence.comparison.statistic == statistic].dropna(subset=["cliffs_delta"])
    return [
        Effect(row["cliffs_delta"], [row["low"], row["high"]], row["comparison"].removeprefix("target "))
        for row in rows.to_dict(orient="records")
    ]


def _listed(deltas: list[Effect]) -> str:
    return ", ".join(f"{one.name} {one.number(2, sign=True)}" for one in deltas)
