"""Synthetic evaluations, map statistics and evidence with known effects, for tests of Table I and of the report."""

import numpy as np
import pandas as pd

from dfganext.data.arrays import Images
from dfganext.evaluation import evaluate, robustness
from dfganext.explain import comparison
from dfganext.labels import NAMES
from dfganext.report import table1
from dfganext.report.evidence import Evidence
from dfganext.report.table1 import Record
from dfganext.settings import Settings, as_texts, flatten

IMAGES = 200
"""In each synthetic test split."""


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
    table = predictions(accuracy, int(values["seed"]), values["loss"], apart)
    labels = (table.label == "fake").to_numpy().astype(int)
    errors = table.reconstruction_error.to_numpy()
    scores = {
        "convnext": evaluate.evaluate_classifier(
            labels,
            table.logit.to_numpy(),
            labels,
            table.logit.to_numpy(),
            (table.argmax == "fake").to_numpy().astype(int),
        ),
        "autoencoder": evaluate.evaluate_autoencoder(labels, errors, labels, errors, values["autoencoder.threshold"]),
    }
    return Record(run, as_texts(values), scores, table, frozenset({table1.NETWORK, table1.AUTOENCODER}))


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
    own = maps[maps.label == maps.target].set_index("path").entropy
    heldout = pd.DataFrame({"path": table.path, "label": table.label})
    heldout["log_density"] = (
        1000 + rng.normal(size=IMAGES) + density_slope * (own.reindex(table.path).to_numpy() - 0.5) / 0.05
    )
    parts = [
        heldout.assign(protocol="heldout"),
        heldout[heldout.label == "fake"].assign(protocol="paper"),
        heldout[heldout.label == "real"].assign(protocol="paper", log_density=1500.0),
        heldout[heldout.label == "fake"][:50].assign(protocol="tree", log_density=900.0),
    ]
    labels = (table.label == "fake").to_numpy().astype(int)
    guess = rng.random(IMAGES)
    pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    spread = {name: {"mean": 1000.0, "std": 5.0} for name in NAMES}
    curve = {
        f"{part}_{name}": [0.5, 0.9]
        for part in ("train", "validation")
        for name in ("accuracy", "precision", "recall", "f1", "loss")
    }
    fractions = np.linspace(0, 1, 5)
    return Evidence(
        settings=chosen,
        rows=table1.collect(records, chosen),
        excluded=0,
        split=pd.DataFrame(
            {
                "path": table.path,
                "label": table.label,
                "split": np.array(["train", "validation", "test", "test"])[np.arange(IMAGES) // 2 % 4],
                "sha256": [str(number) for number in range(IMAGES)],
                "group": range(IMAGES),
            }
        ),
        sample=False,
        train=Images(pixels, labels, list(table.path), np.arange(IMAGES)),
        audit={
            "images": 100,
            "groups": {
                "bytes": {"features": ["bytes"], "roc_auc": 0.9, "interval": [0.8, 0.95], "leak": True},
                "size": {"features": ["width"], "roc_auc": None, "interval": None, "leak": False, "note": "too few"},
            },
            "offenders": [
                {"feature": "bytes", "above": 9, "real": 0.0, "fake": 1.0, "sentence": "All <fakes> are large."}
            ],
            "warnings": ["The bytes give the class away."],
        },
        evaluate=here.scores,
        baseline=evaluate.evaluate_probabilities(labels, guess, labels, guess),
        density={
            "paper": {**spread, "lone_point": 1500.0},
            "heldout": {**spread, "roc_auc": 0.5, "roc_auc_interval": [0.4, 0.6], "higher": "fake"},
            "tree": {**spread, "largest_error": 100.0, "images": 50},
            "points": 100,
            "dimension": 64,
            "bandwidth": 0.2,
        },
        curves=pd.DataFrame({"epoch": [1, 2], **curve}),
        robustness=robustness.measure(lambda images: images[:, 0, 0, 0] / 255, pixels[:20], labels[:20], 0.5),
        predictions=table,
        baseline_predictions=pd.DataFrame(
            {"path": table.path, "label": table.label, "group": table.group, "p_fake": guess}
        ),
        reliability=evaluate.reliability(
            labels, here.predictions.logit.to_numpy(), here.scores["convnext"]["temperature"]
        ),
        densities=pd.concat(parts, ignore_index=True),
        maps=maps,
        comparison=comparison.compare(maps),
        faithfulness=pd.DataFrame(
            [
                {
                    "curve": curve,
                    "ranking": ranking,
                    "difference": -0.1,
                    "low": -0.2,
                    "high": 0.0,
                    "p": 0.01,
                    "images": 20,
                }
                for curve in ("deletion", "insertion")
                for ranking in ("random", "centred")
            ]
        ),
        faithfulness_curves=pd.DataFrame(
            [
                {"curve": curve, "ranking": ranking, "fraction": fraction, "probability": 1 - fraction}
                for curve in ("deletion", "insertion")
                for ranking in ("gradcam", "random", "centred")
                for fraction in fractions
            ]
        ),
        sanity=pd.DataFrame({"depth": ["head", "head", "all"], "image": [0, 1, 0], "similarity": [0.2, 0.3, np.nan]}),
    )
