"""Synthetic evaluations, map statistics and evidence with known effects, for tests of Table I and of the report."""

import copy
import dataclasses
import functools
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from dfganext.data.arrays import Images
from dfganext.evaluation import evaluate, external, robustness, selective
from dfganext.evaluation.decision import DecisionRule
from dfganext.explain import comparison, faithfulness
from dfganext.labels import NAMES
from dfganext.report import architectures, table1
from dfganext.report.evidence import Evidence
from dfganext.report.table1 import Record
from dfganext.settings import Settings, as_texts, flatten

IMAGES = 200
"""In each synthetic test split."""
METRICS = ("accuracy", "precision", "recall", "f1")


def predictions(accuracy: float, seed: int, loss: str = "ce", apart: float = 0.0) -> pd.DataFrame:
    """Logits that are correct with this probability, and reconstruction errors that are `apart` SD larger for fakes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(IMAGES) % 2
    correct = rng.random(IMAGES) < accuracy
    logits = np.where(correct == (labels == 1), 1, -1) * rng.uniform(0.5, 4, IMAGES)
    names = np.array(NAMES)
    return pd.DataFrame(
        {
            "path": [f"{names[label]}/{number}.png" for number, label in enumerate(labels)],
            "label": names[labels],
            "group": range(IMAGES),
            "logit": logits,
            "argmax": names[(logits > 0).astype(int)] if loss == "ce" else "real",
            "reconstruction_error": 0.004 * np.exp(0.3 * (rng.normal(size=IMAGES) + apart * labels)),
        }
    )


def record(settings: Settings, accuracy: float = 0.9, apart: float = 0.0, run: str = "run", **changes) -> Record:
    """An evaluation with these settings; `changes` overrides some by key, with a double underscore for each dot."""
    values = flatten(settings) | {key.replace("__", "."): value for key, value in changes.items()}
    table, scores = _evaluated(accuracy, int(values["seed"]), values["loss"], apart, values["autoencoder.threshold"])
    parts = frozenset({table1.NETWORK, table1.AUTOENCODER})
    return Record(run, as_texts(values), copy.deepcopy(scores), table.copy(), parts)


@functools.cache
def _evaluated(
    accuracy: float, seed: int, loss: str, apart: float, threshold: float
) -> tuple[pd.DataFrame, dict[str, Any]]:
    table = predictions(accuracy, seed, loss, apart)
    labels = (table.label == "fake").to_numpy().astype(int)
    logits, errors = table.logit.to_numpy(), table.reconstruction_error.to_numpy()
    argmax = (table.argmax == "fake").to_numpy().astype(int)
    return table, {
        "convnext": evaluate.evaluate_classifier(labels, logits, labels, logits, argmax),
        "autoencoder": evaluate.evaluate_autoencoder(labels, errors, labels, errors, threshold),
    }


def all_rows(
    settings: Settings, accuracy: float = 0.97, bce: float = 0.97, apart: float = 0.0, **changes
) -> list[Record]:
    """The evaluations that `make table1` logs for one seed."""
    first, second = settings.table1.first, settings.table1.second
    return [
        record(
            settings,
            accuracy,
            apart,
            "ce",
            autoencoder__size=first.size,
            autoencoder__threshold=first.threshold,
            **changes,
        ),
        record(
            settings,
            bce,
            apart,
            "bce",
            loss="bce",
            autoencoder__size=second.size,
            autoencoder__threshold=second.threshold,
            **changes,
        ),
    ]


def other_architectures(settings: Settings, **accuracies: float) -> list[Record]:
    """Evaluations of the other architectures of the setting; `accuracies` changes some, by name."""
    return [
        record(settings, accuracies.get(name, 0.8), run=name, convnext__architecture=name)
        for name in settings.architectures[1:]
    ]


def map_statistics(shift: float, turn: bool = False, on_face: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """Statistics of heat maps. Those of fake images are `shift` SD wider and weaker; with `turn`, the reverse for target real."""
    rng = np.random.default_rng(seed)
    rows = []
    for target in NAMES:
        sign = -1 if turn and target == "real" else 1
        for number in range(IMAGES):
            label = NAMES[number % 2]
            effect = sign * shift * (label == "fake")
            width, strength = 0.5 + 0.05 * (rng.normal() + effect), np.exp(0.3 * (rng.normal() - effect))
            rows.append(
                {
                    "path": f"{label}/{number}.png",
                    "label": label,
                    "group": number,
                    "target": target,
                    "maximum": 2 * strength,
                    "mean": strength,
                    "entropy": width,
                    "effective_area": width,
                    "above_half": width / 2,
                    "gini": 1 - width,
                    "face_mass": 0.42 + on_face + 0.05 * rng.normal(),
                }
            )
    return pd.DataFrame(rows)


def evidence_of(chosen: Settings, records: list[Record], maps: pd.DataFrame, density_slope: float = 0.0) -> Evidence:
    """All evidence of a workspace with these records and maps. Per SD of the maps' entropy, log density rises by `density_slope`."""
    rng = np.random.default_rng(3)
    here = records[0]
    table = here.predictions.assign(p_fake=1 / (1 + np.exp(-here.predictions.logit)))
    densities = _densities(table, maps, density_slope, rng)
    labels = (table.label == "fake").to_numpy().astype(int)
    guess = rng.random(IMAGES)
    pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    logits, temperature = table.logit.to_numpy(), here.scores["convnext"]["temperature"]
    here.scores["convnext"]["decisions"] = _decisions(table.p_fake.to_numpy(), labels)
    return Evidence(
        settings=chosen,
        rows=table1.collect(records, chosen),
        architectures=architectures.collect(records, chosen),
        excluded=0,
        split=_split(table),
        sample=False,
        train=Images(pixels, labels, list(table.path), np.arange(IMAGES)),
        audit=AUDIT,
        evaluate=here.scores,
        baseline=evaluate.evaluate_probabilities(labels, guess, labels, guess),
        density=DENSITY,
        external={"elsewhere": _external(np.ones(12, int), rng), "both <classes>": _external(np.arange(12) % 2, rng)},
        curves=_curves(),
        robustness=_robustness(),
        predictions=table,
        baseline_predictions=table[["path", "label", "group"]].assign(p_fake=guess),
        reliability=evaluate.reliability(labels, logits, temperature),
        densities=densities,
        maps=maps,
        comparison=comparison.compare(maps),
        faithfulness=_faithfulness(),
        faithfulness_curves=_faithfulness_curves(),
        sanity=pd.DataFrame({"depth": ["head", "head", "all"], "image": [0, 1, 0], "similarity": [0.2, 0.3, np.nan]}),
    )


@functools.cache
def _robustness() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    rule = DecisionRule(0.05, 0.3, 0.7)
    table = robustness.measure(lambda images: images[:, 0, 0, :2] / 255, pixels, np.arange(20) % 2, 0.5, rule=rule)
    return table.assign(trained_on=[one.transform == "blur" for one in robustness.CONDITIONS])


def _decisions(p_fake: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    rule, found = selective.choose(labels, p_fake, 0.5, 0.05)
    rule = dataclasses.replace(rule, novel_above=0.3)
    measured = selective.measure(labels, *selective.decide(rule, p_fake, np.linspace(0, 0.31, len(p_fake))))
    return {**dataclasses.asdict(rule), "validation": found, **measured}


def _external(labels: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    own = external.Own(np.arange(18) % 2, rng.random(18), np.arange(18))
    files = {"format": {"JPEG": len(labels)}, "size": {"256x256": len(labels)}, "quantisation": {"2.5": len(labels)}}
    p_fake = rng.random(len(labels))
    found = external.evaluate(labels, p_fake, 0.5, None, own)
    decided = selective.decide(DecisionRule(0.05, 0.3, 0.7, 0.9), p_fake, rng.random(len(labels)))
    return {
        **found,
        "decisions": selective.measure(labels, *decided),
        "left_out": 2,
        "files_refused": 1,
        "files": files,
        "training_files": files,
    }


AUDIT = {
    "images": 100,
    "groups": {
        "bytes": {"features": ["bytes"], "roc_auc": 0.9, "interval": [0.8, 0.95], "leak": True},
        "size": {"features": ["width"], "roc_auc": None, "interval": None, "leak": False, "note": "too few"},
    },
    "offenders": [{"feature": "bytes", "above": 9, "real": 0.0, "fake": 1.0, "sentence": "All <fakes> are large."}],
    "warnings": ["The bytes give the class away."],
}

SPREAD = {name: {"mean": 1000.0, "std": 5.0} for name in NAMES}
DENSITY = {
    "paper": {**SPREAD, "lone_point": 1500.0},
    "heldout": {**SPREAD, "roc_auc": 0.5, "roc_auc_interval": [0.4, 0.6], "higher": "fake"},
    "tree": {**SPREAD, "largest_error": 100.0, "images": 50},
    "points": 100,
    "dimension": 64,
    "bandwidth": 0.2,
}


def _densities(table: pd.DataFrame, maps: pd.DataFrame, slope: float, rng: np.random.Generator) -> pd.DataFrame:
    own = maps[maps.label == maps.target].set_index("path").entropy
    values = 1000 + rng.normal(size=IMAGES) + slope * (own.reindex(table.path).to_numpy() - 0.5) / 0.05
    heldout = table[["path", "label"]].assign(log_density=values)
    fakes, reals = heldout[heldout.label == "fake"], heldout[heldout.label == "real"]
    parts = [
        heldout.assign(protocol="heldout"),
        fakes.assign(protocol="paper"),
        reals.assign(protocol="paper", log_density=1500.0),
        fakes[:50].assign(protocol="tree", log_density=900.0),
    ]
    return pd.concat(parts, ignore_index=True)


def _split(table: pd.DataFrame) -> pd.DataFrame:
    return table[["path", "label", "group"]].assign(
        split=np.array(["train", "validation", "test", "test"])[np.arange(IMAGES) // 2 % 4],
        sha256=[str(number) for number in range(IMAGES)],
    )


def _curves() -> pd.DataFrame:
    names = [f"{part}_{name}" for part in ("train", "validation") for name in (*METRICS, "loss")]
    return pd.DataFrame({"epoch": [1, 2], **{name: [0.5, 0.9] for name in names}})


def _faithfulness() -> pd.DataFrame:
    keys = product(faithfulness.CURVES, faithfulness.BASELINES)
    rows = pd.DataFrame(keys, columns=["curve", "ranking"])
    return rows.assign(difference=-0.1, low=-0.2, high=0.0, p=0.01, images=20)


def _faithfulness_curves() -> pd.DataFrame:
    keys = product(faithfulness.CURVES, faithfulness.RANKINGS, np.linspace(0, 1, 5))
    rows = pd.DataFrame(keys, columns=["curve", "ranking", "fraction"])
    return rows.assign(probability=1 - rows.fraction)
