"""95 % confidence intervals for images in near-duplicate groups; they also cover where a sample has no errors.

Groups, not images, are independent; a group may hold both classes. Proportions have Wilson's interval; ROC AUC, average
precision and the equal error rate have Clopper and Pearson's. Both are given an effective number of trials: as many independent
trials as would have the same variance. benchmarks/coverage.py measures how often the intervals contain the true value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import stats

from dfganext.evaluation import bootstrap, metrics

CONFIDENCE = 0.95
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))

Interval = list[float]
"""[low, high]"""
Groups = np.ndarray | None
"""(n,) integers, the near-duplicate group of each image; None: each image is a group of its own."""
Compared = Literal["roc_auc", "accuracy", "log_loss"]


def wilson(successes: float, trials: float) -> Interval:
    """Interval of a proportion (Wilson 1927), in 0...1. Counts may be fractional."""
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(max(0.0, share * (1 - share)) / trials + Z**2 / (4 * trials**2))
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]


def clopper_pearson(share: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion (Clopper and Pearson 1934), in 0...1; share x trials may be fractional."""
    hits, misses, tail = share * trials, (1 - share) * trials, (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, misses + 1)) if hits > 1e-9 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, misses)) if misses > 1e-9 else 1.0
    return [low, high]


def proportion(hits: np.ndarray, groups: Groups = None, among: np.ndarray | None = None) -> Interval:
    """Wilson's interval of the share of True, with `effective_images` as the number of trials; [0, 1] without images.

    Args:
        hits: bool, (n,).
        among: bool, (n,): only these images count.
    """
    if among is not None:
        hits, groups = hits[among], None if groups is None else groups[among]
    if not len(hits):
        return [0.0, 1.0]
    trials = effective_images(hits, groups)
    return wilson(float(hits.mean()) * trials, trials)


def f1(labels: np.ndarray, predicted: np.ndarray, groups: Groups = None) -> Interval:
    """Interval of the F1 of "fake", which is 2 j / (1 + j) with the share j = TP / (TP + FP + FN).

    Args:
        predicted: bool, (n,): which images are predicted fake.
    """
    fake = labels == 1
    low, high = proportion(predicted & fake, groups, predicted | fake)
    return [2 * low / (1 + low), 2 * high / (1 + high)]


def roc_auc(labels: np.ndarray, scores: np.ndarray, groups: Groups = None, folds: np.ndarray | None = None) -> Interval:
    """Interval of the ROC AUC; a perfect separation of 80 and 80 images gives [0.955, 1].

    Args:
        folds: (n,), the cross-validation fold of each image, each with both classes: only images of one fold are compared.
    """
    area = _area(labels, scores, groups, folds)
    return clopper_pearson(area.value, area.trials)


def average_precision_and_eer(
    labels: np.ndarray, scores: np.ndarray, groups: Groups = None, count: int = bootstrap.RESAMPLES
) -> dict[str, Interval]:
    """Intervals of average precision and equal error rate.

    The variance is the bootstrap's, shrunk (see `_shrunk`) towards that of a proportion of the smaller class.
    """
    area = _area(labels, scores, groups)
    drawn = bootstrap.distribution(labels, partial(metrics.ranking, labels, scores), groups, count)
    found = metrics.ranking(labels, scores)
    errors = {"average_precision": area.events, "eer": min(found["eer"], 1 - found["eer"]) * area.images}
    worst, intervals = 1 / area.images, {}
    for name, events in errors.items():
        value = float(found[name])
        estimated = min(worst, float(np.var(drawn[name])) / (value * (1 - value))) if 0 < value < 1 else worst
        intervals[name] = clopper_pearson(value, 1 / _shrunk(estimated, worst, events))
    return intervals


def tpr_at_fpr(labels: np.ndarray, scores: np.ndarray, rate: float, groups: Groups = None) -> Interval:
    """Interval of the true positive rate at the threshold that has the false positive rate `rate` on *all* real images.

    This threshold is unknown. The real images bound it (Woodruff 1952, with Clopper and Pearson's bounds of the false
    positive rate); at each bound the fake images bound the true positive rate. Each bound fails in at most 1.25 % of samples, so
    the interval covers in at least 95 %. With fewer than 437 real images at a rate of 1 %, or 875 at 0.5 %, the low end is 0.
    """
    real, fake = scores[labels == 0], scores[labels == 1]
    real_groups, fake_groups = (None if groups is None else groups[labels == label] for label in (0, 1))
    tail = (1 - CONFIDENCE) / 4
    ordered = np.sort(real)[::-1]
    at = ordered[min(int(rate * len(real)), len(real) - 1)]
    trials = effective_images(real > at, real_groups)
    above = np.searchsorted(-ordered, -ordered, side="left") * trials / len(real)  # real images above each, as trials
    not_below = np.searchsorted(-ordered, -ordered, side="right") * trials / len(real)
    surely_within = ordered[stats.beta.ppf(1 - tail, above + 1, np.maximum(trials - above, 1e-9)) <= rate]
    surely_beyond = ordered[stats.beta.ppf(tail, not_below, trials - not_below + 1) >= rate]

    def bounds(hits: np.ndarray) -> Interval:
        return clopper_pearson(float(hits.mean()), effective_images(hits, fake_groups), 1 - 2 * tail)

    low = bounds(fake > surely_within[-1])[0] if len(surely_within) else 0.0
    high = bounds(fake >= surely_beyond[0])[1] if len(surely_beyond) else 1.0
    return [low, high]


def probability(labels: np.ndarray, p_fake: np.ndarray, groups: Groups = None) -> dict[str, Interval]:
    """Intervals of `metrics.probability`: bootstrap percentiles, widened by the cost of errors that this sample may lack.

    The share of images on the wrong side of 0.5 has a Wilson interval. Log loss and Brier score are computed for both of its
    ends, where a wrong image costs the mean of the wrong images, or without any, the mean of all images with exchanged labels.
    The calibration error changes by at most the change of that share. Resampling increases it, so its interval lies high.
    """
    drawn = bootstrap.distribution(labels, partial(metrics.probability, labels, p_fake), groups)
    found = {name: bootstrap.percentiles(values) for name, values in drawn.items()}
    wrong = (p_fake > 0.5) != (labels == 1)
    shares = proportion(wrong, groups)
    costs = {"log_loss": metrics.losses, "brier": lambda labels, p_fake: (p_fake - labels) ** 2}
    for name, cost in costs.items():
        of_wrong = cost(labels, p_fake)[wrong].mean() if wrong.any() else cost(1 - labels, p_fake).mean()
        of_right = cost(labels, p_fake)[~wrong].mean() if not wrong.all() else cost(1 - labels, p_fake).mean()
        ends = [float(of_right + share * (of_wrong - of_right)) for share in shares]
        found[name] = [min(found[name][0], *ends), max(found[name][1], *ends)]
    error = float(metrics.expected_calibration_error(labels, p_fake))
    found["ece"][1] = max(found["ece"][1], min(1.0, error + shares[1] - float(wrong.mean())))
    return found


def mean(values: np.ndarray, groups: Groups = None, strata: np.ndarray | None = None) -> Interval:
    """Student's t interval of a mean, with the cluster-robust variance of group totals and groups - 1 degrees of freedom.

    Args:
        strata: (n,), for example classes with fixed numbers of images; only the spread within each stratum counts.

    Returns:
        [low, high]; [-inf, inf] for a single group. No width where all values are equal.
    """
    middle = float(values.mean())
    centred = values - middle
    if strata is not None:
        for stratum in np.unique(strata):
            centred[strata == stratum] -= centred[strata == stratum].mean()
    totals = _totals(centred, groups)
    if len(totals) < 2:
        return [-np.inf, np.inf]
    error = np.sqrt(np.sum(totals**2) * len(totals) / (len(totals) - 1)) / len(values)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(totals) - 1) * error)
    return [middle - half, middle + half]


def paired_difference(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    metric: Compared,
    groups: Groups = None,
    thresholds: tuple[float, float] = (0.5, 0.5),
) -> dict[str, Any]:
    """A metric of one model minus that of another, on the same images: difference (first - second) and its 95 % interval.

    Args:
        labels: (n,), 0 real and 1 fake, both classes.
        first, second: (n,), scores of the two models, higher is "more likely fake"; for "log_loss" (nats) p_fake.
        thresholds: of first and second, for "accuracy": fake where the score is above it.
    """
    if metric == "accuracy":
        fake = labels == 1
        ours, theirs = ((scores > at) == fake for scores, at in zip((first, second), thresholds, strict=True))
        return accuracy_difference(ours, theirs, groups)
    if metric == "roc_auc":
        return roc_auc_difference(labels, first, second, groups)
    gaps = metrics.losses(labels, first) - metrics.losses(labels, second)
    return {"difference": float(np.mean(gaps)), "interval": mean(gaps, groups, labels)}


def roc_auc_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, groups: Groups = None
) -> dict[str, Any]:
    """ROC AUC of one model minus another's on the same images: difference (first - second) and interval.

    The two intervals of `roc_auc` and the correlation of the two areas (DeLong 1988) are combined by square and add (Zou and
    Donner 2008). The correlation is at most 1 - 2 / n, n the images of the smaller class, as Newcombe (1998) does for
    proportions, so that two models which agree on all images are not certain to be equal.
    """
    one, other = _area(labels, first, groups), _area(labels, second, groups)
    gap = one.value - other.value
    spread = np.sqrt(np.sum(one.totals**2) * np.sum(other.totals**2))
    correlation = float(one.totals @ other.totals / spread) if spread > 0 else 0.0
    correlation = min(correlation, 1 - 2 / max(2.0, one.images))

    def square_and_add(one: float, other: float) -> float:
        return float(np.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other)))

    (low_one, high_one), (low_other, high_other) = (clopper_pearson(area.value, area.trials) for area in (one, other))
    low = gap - square_and_add(one.value - low_one, high_other - other.value)
    high = gap + square_and_add(high_one - one.value, other.value - low_other)
    return {"difference": gap, "interval": [max(-1.0, low), min(1.0, high)]}


def accuracy_difference(first_right: np.ndarray, second_right: np.ndarray, groups: Groups = None) -> dict[str, Any]:
    """Accuracy of one model minus another's on the same images: difference (first - second) and interval.

    The method (Bonett and Price 2012, adjusted Wald) adds one image that only the first model predicts correctly and one that
    only the second does. Counts are divided by the design effect of the groups.

    Args:
        first_right, second_right: bool, (n,): whether each model's prediction of each image is correct.
    """
    images = len(first_right)
    gain = first_right.astype(float) - second_right
    trials = effective_images(gain, groups)
    first_only, second_only = (np.sum(gain == sign) * trials / images for sign in (1, -1))
    more, less = (first_only + 1) / (trials + 2), (second_only + 1) / (trials + 2)
    half = Z * np.sqrt((more + less - (more - less) ** 2) / (trials + 2))
    interval = [max(-1.0, float(more - less - half)), min(1.0, float(more - less + half))]
    return {"difference": float(gain.mean()), "interval": interval}


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, float | int]:
    """Exact McNemar test of two models on the same images; arguments as for `accuracy_difference`.

    Returns:
        only_first and only_second, the images that only one model predicts correctly; p, two-sided, 1 without any.
    """
    only_first, only_second = int(np.sum(first_right & ~second_right)), int(np.sum(second_right & ~first_right))
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": float(p)}


def effective_images(values: np.ndarray, groups: Groups) -> float:
    """As many independent images would give the mean of these values the same variance: images / design effect, 1...n.

    The design effect is shrunk (see `_shrunk`) towards that of groups within which all values are equal.
    """
    images, values = len(values), values.astype(float)
    if groups is None:
        return float(images)
    sizes, centred = _totals(np.ones(images), groups), values - values.mean()
    worst, spread = float(sizes @ sizes) / images, float(centred @ centred)
    estimated = min(worst, float(np.sum(_totals(centred, groups) ** 2)) / spread) if spread > 0 else worst
    events = _effective_number(_totals(np.abs(values - np.median(values)), groups))
    return images / max(1.0, _shrunk(estimated, worst, events))


@dataclass(frozen=True)
class _Area:
    """A ROC AUC and what its interval needs.

    totals: (groups,), deviation from the area summed over each group; their squares sum to the variance.
    trials: the effective number of trials.
    images: effective number of images of the smaller class (Kish 1965).
    events: effective number of images with errors, of the class that has fewer.
    """

    value: float
    totals: np.ndarray
    trials: float
    images: float
    events: float


def _area(labels: np.ndarray, scores: np.ndarray, groups: Groups = None, folds: np.ndarray | None = None) -> _Area:
    """The ROC AUC as the mean placement of a class: for each fake image, the share of real images that score lower.

    Its variance is DeLong's (1988), summed over groups as by Obuchowski (1997). The part of each class is shrunk (see `_shrunk`),
    and the whole is at most van Dantzig's (1951) bound: that of as many trials as the smaller class has images.
    """
    placements, shares = _placements(labels, scores, np.zeros(len(labels), int) if folds is None else folds)
    fake = labels == 1
    value = min(1.0, float(shares[fake] @ placements[fake]))
    room = value * (1 - value)
    lacking = shares * (1 - placements if value >= 0.5 else placements)
    inverse, worst, events = 0.0, [], []
    for member in (~fake, fake):
        worst.append(1 / _effective_number(_totals(shares * member, groups)))
        events.append(_effective_number(_totals(lacking * member, groups)))
        variance = float(np.sum(_totals(shares * member * (placements - value), groups) ** 2))
        estimated = min(worst[-1], variance / room) if room > 0 else worst[-1]
        inverse += _shrunk(estimated, worst[-1], events[-1])
    totals = _totals(shares * (placements - value), groups)
    return _Area(value, totals, 1 / min(inverse, max(worst)), 1 / max(worst), min(events))


def _placements(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image, within its fold: the share of the other class that it is ranked correctly against, ties as one half;
    and its share of all pairs, which sums to 1 in each class."""
    placements, shares = np.empty(len(labels)), np.empty(len(labels))
    for fold in np.unique(folds):
        for label in (0, 1):
            rows, others = (np.flatnonzero((folds == fold) & (labels == one)) for one in (label, 1 - label))
            ordered = np.sort(scores[others])
            below = sum(np.searchsorted(ordered, scores[rows], side) for side in ("left", "right")) / (2 * len(others))
            placements[rows] = below if label == 1 else 1 - below
            shares[rows] = len(others)
    return placements, shares / shares[labels == 1].sum()


def _totals(values: np.ndarray, groups: Groups) -> np.ndarray:
    """Sum of values over each group, (groups,)."""
    if groups is None:
        return values
    return np.bincount(np.unique(groups, return_inverse=True)[1], values)


def _effective_number(totals: np.ndarray) -> float:
    """How many equal parts would be as concentrated as these (Kish 1965): (sum t)^2 / sum t^2; 0 where all are 0."""
    squares = float(totals @ totals)
    return float(totals.sum()) ** 2 / squares if squares > 0 else 0.0


def _shrunk(estimated: float, worst: float, events: float) -> float:
    """A variance estimated from the images with errors (events), shrunk towards its greatest possible value as if one more image
    with an error had shown that value: without errors the estimate would be 0."""
    return (events * estimated + worst) / (events + 1)
