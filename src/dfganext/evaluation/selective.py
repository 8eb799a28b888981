"""Selective prediction: real, fake, or unsure where neither answer keeps the promised error rate.

Two thresholds are chosen on validation images by fixed-sequence testing (Angelopoulos et al. 2021, "Learn then Test"): images
are called fake in the order of p_fake, the highest first, and Clopper and Pearson's one-sided upper bound of the share of
real images among them must not exceed the permitted error rate. The first count for which it does ends the sequence. The
count at the start depends only on the number of images, so with the given confidence the error rate among all images called
fake is at most the permitted one. The same holds for real, from the other end. It holds for images like the validation
images, with the same share of fakes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from dfganext.data.arrays import Images
from dfganext.evaluation import decision, intervals
from dfganext.evaluation.decision import UNSURE, DecisionRule
from dfganext.evaluation.intervals import Groups
from dfganext.labels import FAKE, NAMES, REAL
from dfganext.settings import OperatingPoint

CONFIDENCE = 0.95
START = 0.25
"""The sequence starts at this share of the images of the class, if so few can show the permitted error rate."""

COLUMNS = {"unsure": "unsure", "novel": "novel", "decided_accuracy": "accuracy"}
"""Columns of tables beside a detector's other metrics, and the metric of `measure` in each."""


def choose(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float, max_error: float, groups: Groups = None
) -> tuple[DecisionRule, dict[str, Any]]:
    """The thresholds between which an image is unsure.

    Args:
        labels, p_fake: (n,), of validation images.
        threshold: the decision threshold; fake_above is not below it and real_up_to not above it.
        max_error: permitted error rate among the images called fake, and among those called real; 0...1, exclusive.
        groups: (n,), the near-duplicate group of each image. One image of each group and class counts, the first.

    Returns:
        The rule, without novelty; and for "fake" and "real" the validation images that are called so, the errors among them, and
        the upper bound of the error rate (None without a threshold).
    """
    if groups is not None:
        keys = np.stack([np.unique(groups, return_inverse=True)[1], labels])
        first = np.sort(np.unique(keys, axis=1, return_index=True)[1])
        labels, p_fake = labels[first], p_fake[first]
    cut_fake = _cut(p_fake, labels == FAKE, max_error)
    cut_real = _cut(-p_fake, labels == REAL, max_error)
    rule = DecisionRule(
        max_error,
        real_up_to=None if cut_real is None else min(threshold, -cut_real),
        fake_above=None if cut_fake is None else max(threshold, cut_fake),
    )
    decisions, _ = decide(rule, p_fake, np.zeros(len(p_fake)))
    found: dict[str, Any] = {"images": len(p_fake)}
    for label, name in enumerate(NAMES):
        called = decisions == name
        images, errors = int(called.sum()), int((labels[called] != label).sum())
        bound = float(upper_bounds(np.array(errors), np.array(images))) if images else None
        found[name] = {"images": images, "errors": errors, "bound": bound}
    return rule, found


def make_rule(
    validation: Images, p_fake: np.ndarray, novelty: np.ndarray, threshold: float, settings: OperatingPoint
) -> tuple[DecisionRule, dict[str, Any]]:
    """The rule for decisions, with the permitted rates of the settings.

    Args:
        p_fake, novelty: (n,), of the validation images.
        threshold: the decision threshold.

    Returns:
        The rule, and the details of `choose` on the validation images that are not novel.
    """
    novel_above = novelty_threshold(novelty, settings.max_novel)
    ordinary = np.ones(len(novelty), bool) if novel_above is None else novelty <= novel_above
    rule, found = choose(
        validation.labels[ordinary], p_fake[ordinary], threshold, settings.max_error, validation.groups[ordinary]
    )
    return replace(rule, novel_above=novel_above), found


def decide(rule: DecisionRule | None, p_fake: np.ndarray, novelty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The decisions for n images, as text (n,), and which images are novel, bool (n,)."""
    decisions = [decision.decide(rule, *pair).decision for pair in zip(p_fake, novelty, strict=True)]
    novel = [rule is not None and rule.is_novel(value) for value in novelty]
    return np.array(decisions, str), np.array(novel, bool)


def novelty_threshold(novelty: np.ndarray, max_novel: float) -> float | None:
    """The novelty above which an image is unlike the training images.

    It is exceeded by an image like the validation images with a probability of at most max_novel (split conformal prediction).

    Args:
        novelty: (n,), of validation images.

    Returns:
        None where n is too small to show this: below 1 / max_novel - 1.
    """
    rank = math.ceil((len(novelty) + 1) * (1 - max_novel))
    return float(np.sort(novelty)[rank - 1]) if 1 <= rank <= len(novelty) else None


def measure(labels: np.ndarray, decisions: np.ndarray, novel: np.ndarray, groups: Groups = None) -> dict[str, Any]:
    """How often decisions are right, and how often there is none.

    Args:
        labels: (n,).
        decisions: (n,), "real", "fake" or "unsure".
        novel: bool (n,): the images that are unsure because they are unlike the training images.
        groups: (n,), the near-duplicate group of each image.

    Returns:
        Shares of the images: unsure, and novel. accuracy among the images that are not unsure; error_fake and error_real, the
        error rates among those called so. None without such images, with the interval [0, 1]. Under "intervals" [low, high],
        95 %, of each.
    """
    decided = decisions != UNSURE
    right = decisions == np.array(NAMES)[labels]
    everything = np.ones(len(labels), bool)
    shares = {
        "unsure": (everything, ~decided),
        "novel": (everything, novel),
        "accuracy": (decided, right),
        "error_fake": (decisions == "fake", ~right),
        "error_real": (decisions == "real", ~right),
    }
    return {
        **{name: float(hits[among].mean()) if among.any() else None for name, (among, hits) in shares.items()},
        "intervals": {name: intervals.proportion(hits, groups, among) for name, (among, hits) in shares.items()},
    }


def columns(measured: dict[str, Any]) -> dict[str, float | None]:
    """What `measure` returned, as `COLUMNS` of a table."""
    return {name: measured[key] for name, key in COLUMNS.items()}


def upper_bounds(errors: np.ndarray, images: np.ndarray, confidence: float = CONFIDENCE) -> np.ndarray:
    """Clopper and Pearson's one-sided upper bounds of error rates, (n,), from numbers of errors and of images, (n,)."""
    return np.where(errors < images, stats.beta.ppf(confidence, errors + 1, np.maximum(images - errors, 1)), 1.0)


def images_needed(max_error: float, confidence: float = CONFIDENCE) -> int:
    """Fewest images that show an error rate of at most max_error, if none of them is wrong: 59 for 5 %."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_error))


def _cut(scores: np.ndarray, right: np.ndarray, max_error: float) -> float | None:
    """The lowest threshold for which the images above it show the permitted error rate; None without one.

    Args:
        scores: (n,), higher is more certain.
        right: bool, (n,): whether calling the image so is right.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, errors = scores[order], np.cumsum(~right[order])
    # images of equal score are called together; below the last score there is nothing to call
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True)) + 1
    start = max(images_needed(max_error), math.ceil(START * right.sum()))
    counts = ends[ends >= start]
    passes = upper_bounds(errors[counts - 1], counts) <= max_error
    if not len(counts) or not passes[0]:
        return None
    count = counts[-1] if passes.all() else counts[np.argmin(passes) - 1]
    below = ordered[count] if count < len(ordered) else np.nextafter(ordered[-1], -np.inf)
    return float(ordered[count - 1] + below) / 2
