"""95 % confidence intervals that cover also where a sample is perfect, for images that come in near-duplicate groups.

Images of one near-duplicate group say much the same, so groups, not images, count as independent. Every function takes
`groups` (n,), the group of each image; without it each image is a group of its own. A group may hold both classes.

Proportions have Wilson's interval. ROC AUC, average precision and the equal error rate have Clopper and Pearson's, which also
holds where no error was seen. Both are given an effective number of trials: as many independent trials as would have the
same variance. How each covers is measured by benchmarks/coverage.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import stats

from dfganext.evaluation import metrics

CONFIDENCE = 0.95
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
RESAMPLES = 2000
BLOCK = 2**20
"""Weights held at a time: some 64 MB with all that is computed from them."""

Interval = list[float]
"""[low, high]"""
Groups = np.ndarray | None
"""(n,) integers, the near-duplicate group of each image; None: each image is a group of its own."""
Compared = Literal["roc_auc", "accuracy", "log_loss"]


def wilson(successes: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion (Wilson 1927), in 0...1. Counts may be fractional. ValueError for less than one trial."""
    if trials < 1 - 1e-9:
        raise ValueError("a proportion needs at least one trial")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(max(0.0, share * (1 - share)) / trials + z**2 / (4 * trials**2))
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]


def clopper_pearson(share: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion (Clopper and Pearson 1934), in 0...1; share x trials may be fractional."""
    hits, misses, tail = share * trials, (1 - share) * trials, (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, misses + 1)) if hits > 1e-9 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, misses)) if misses > 1e-9 else 1.0
    return [low, high]


def proportion(hits: np.ndarray, groups: Groups = None) -> Interval:
    """Wilson's interval of the share of images that are hits; [0, 1] without images.

    The number of trials is that of the images divided by the design effect of the groups, see `effective_images`. Where each image is a
    group of its own, this is Wilson's interval of n trials.

    Args:
        hits: bool, (n,).
    """
    if not len(hits):
        return [0.0, 1.0]
    trials = effective_images(hits, groups)
    return wilson(float(hits.mean()) * trials, trials)


def f1(labels: np.ndarray, called: np.ndarray, groups: Groups = None) -> Interval:
    """Interval of the F1 of "fake": a monotone function, 2 j / (1 + j), of the share j = TP / (TP + FP + FN).

    Args:
        called: bool, (n,): which images are called fake.
    """
    fake = labels == 1
    either = called | fake
    low, high = proportion((called & fake)[either], None if groups is None else groups[either])
    return [2 * low / (1 + low), 2 * high / (1 + high)]


def roc_auc(labels: np.ndarray, scores: np.ndarray, groups: Groups = None, folds: np.ndarray | None = None) -> Interval:
    """Interval of the ROC AUC: Clopper and Pearson's with an effective number of trials.

    The ROC AUC is the mean placement of a class: of each fake, the share of real images that score lower. The variance is
    DeLong's (1988), for groups as Obuchowski (1997) sums them. What each class adds to it is drawn towards its greatest
    possible value where few images err (see `_towards`), and the whole is at most van Dantzig's (1951) bound, that of as many
    trials as the smaller class has images. So a perfect separation of 80 and 80 images gives [0.955, 1].

    Args:
        folds: (n,), of cross-validation: only images of one fold are compared, and the area is that of all such pairs. Every
            fold holds both classes.
    """
    area = _Area(labels, scores, groups, folds)
    return clopper_pearson(area.value, area.trials)


def average_precision_and_eer(
    labels: np.ndarray, scores: np.ndarray, groups: Groups = None, count: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of average precision and equal error rate: Clopper and Pearson's with an effective number of trials.

    The variance is that of the bootstrap, drawn towards that of a proportion in the smaller class where few images err.
    """
    area = _Area(labels, scores, groups)
    drawn = resampled(labels, lambda weights: metrics.ranking_weighted(labels, scores, weights), groups, count, seed)
    found = metrics.ranking(labels, scores)
    errors = {"average_precision": area.events, "eer": min(found["eer"], 1 - found["eer"]) * area.images}
    intervals = {}
    for name, events in errors.items():
        value, worst = found[name], 1 / area.images
        inside = 0 < value < 1
        estimated = min(worst, float(np.var(drawn[name])) / (value * (1 - value))) if inside else worst
        intervals[name] = clopper_pearson(value, 1 / _towards(worst, estimated, events))
    return intervals


def tpr_at_fpr(labels: np.ndarray, scores: np.ndarray, rate: float, groups: Groups = None) -> Interval:
    """Interval of the true positive rate at the threshold whose false positive rate on *all* real images would be `rate`.

    That threshold is itself unknown: the real images bound it (Woodruff 1952, with Clopper and Pearson's bounds of the
    false positive rate), and at either bound the fake images bound the true positive rate. Each part errs in 1.25 % of
    samples a side at most, so the interval covers in at least 95 %, whatever the distributions. Where there are too few real
    images to show that any threshold keeps to the rate (fewer than 875 at 0.5 %, 437 at 1 %), the low end is 0: these images cannot
    exclude a rate this low.
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
    low, high = 0.0, 1.0
    if len(surely_within):
        low = _clopper_pearson_of(fake > surely_within[-1], fake_groups, 1 - 2 * tail)[0]
    if len(surely_beyond):
        high = _clopper_pearson_of(fake >= surely_beyond[0], fake_groups, 1 - 2 * tail)[1]
    return [low, high]


def probability(
    labels: np.ndarray, p_fake: np.ndarray, groups: Groups = None, count: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of what `metrics.probability` gives: bootstrap percentiles, united with what unseen errors may cost.

    The latter is what a figure becomes where the share of images on the wrong side of 0.5 is at either end of its Wilson interval,
    and those cost what wrong images cost on average: those measured, or where there are none, all images with their labels
    exchanged. So a sample without error does not make the figure certain. The calibration error changes by 1 for each at
    most. Resampling adds to a calibration error, so its interval lies high.
    """
    figures = partial(metrics.probability_weighted, labels, p_fake)
    found = bootstrap(labels, figures, groups, count, seed)
    wrong = (p_fake > 0.5) != (labels == 1)
    shares = proportion(wrong, groups)
    costs = {"log_loss": metrics.losses, "brier": lambda labels, p_fake: (p_fake - labels) ** 2}
    for name, cost in costs.items():
        of_wrong = cost(labels, p_fake)[wrong].mean() if wrong.any() else cost(1 - labels, p_fake).mean()
        of_right = cost(labels, p_fake)[~wrong].mean() if not wrong.all() else cost(1 - labels, p_fake).mean()
        ends = [float(of_right + share * (of_wrong - of_right)) for share in shares]
        found[name] = [min(found[name][0], *ends), max(found[name][1], *ends)]
    error = metrics.expected_calibration_error(labels, p_fake)
    found["ece"][1] = max(found["ece"][1], min(1.0, error + shares[1] - float(wrong.mean())))
    return found


def mean(values: np.ndarray, groups: Groups = None, strata: np.ndarray | None = None) -> Interval:
    """Student's t interval of a mean, with the variance of groups' totals (cluster-robust), groups - 1 degrees of freedom.

    Args:
        strata: (n,), such as classes whose numbers of images are fixed; only the spread within each counts.

    Returns:
        [low, high]; [-inf, inf] for a single group. Where all values are equal it has no width: nothing is known of how far
        other values may lie.
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
    """A metric of one model less that of another, on the same images, with its 95 % interval.

    - "accuracy", fake where the score is above the model's own threshold: see `accuracy_difference`.
    - "roc_auc": the two intervals of `roc_auc` and the correlation of the two areas (DeLong 1988) combined by square and add
      (Zou and Donner 2008). The correlation is taken as at most 1 - 2 / n, n the images of the smaller class, as Newcombe
      (1998) does for proportions, so that two models which agree on all images are not certain to be equal.
    - "log_loss", nats; scores are p_fake: Student's t of the images' differences. It has no width only where both models give
      every image the same probability.

    Args:
        labels: (n,), 0 real and 1 fake, both classes.
        first, second: (n,), scores of the two models; higher is "more likely fake".
        thresholds: of first and second, for "accuracy".

    Returns:
        difference (first - second) and interval [low, high].

    Raises:
        ValueError: no such metric.
    """
    fake = labels == 1
    if metric == "accuracy":
        ours, theirs = ((scores > at) == fake for scores, at in zip((first, second), thresholds, strict=True))
        return accuracy_difference(ours, theirs, groups)
    if metric == "roc_auc":
        one, other = _Area(labels, first, groups), _Area(labels, second, groups)
        gap = one.value - other.value
        spread = np.sqrt(np.sum(one.totals**2) * np.sum(other.totals**2))
        correlation = float(one.totals @ other.totals / spread) if spread > 0 else 0.0
        correlation = min(correlation, 1 - 2 / max(2.0, one.images))
        spans = [clopper_pearson(area.value, area.trials) for area in (one, other)]
        (below_one, above_one), (below_other, above_other) = (
            (area.value - low, high - area.value) for area, (low, high) in zip((one, other), spans, strict=True)
        )
        low = gap - _square_and_add(below_one, above_other, correlation)
        high = gap + _square_and_add(above_one, below_other, correlation)
        return {"difference": gap, "interval": [max(-1.0, low), min(1.0, high)]}
    if metric == "log_loss":
        ours, theirs = (metrics.losses(labels, scores) for scores in (first, second))
        return {"difference": float(np.mean(ours - theirs)), "interval": mean(ours - theirs, groups, labels)}
    raise ValueError(f"no metric {metric!r}: there are roc_auc, accuracy and log_loss")


def accuracy_difference(first_right: np.ndarray, second_right: np.ndarray, groups: Groups = None) -> dict[str, Any]:
    """Accuracy of one model less another's on the same images, and its interval (Bonett and Price 2012, adjusted Wald).

    One image that only the first judges rightly and one that only the second does are added, so that models which agree on all
    images are not certain to be equally accurate. Counts are divided by the design effect of the groups.

    Args:
        first_right, second_right: bool, (n,): whether each model judged each image rightly.

    Returns:
        difference and interval.
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
    """Exact McNemar test of two models on the same images.

    Args:
        first_right, second_right: bool, (n,): whether each model judged each image rightly.

    Returns:
        only_first and only_second, the images that one alone judged rightly; p, two-sided, 1 where there are none.
    """
    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(second_right & ~first_right))
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": float(p)}


def resamples(labels: np.ndarray, groups: Groups = None, count: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Stratified bootstrap of whole groups: (count, n) weights, how often each image was drawn.

    Groups are drawn within strata: those of one class alone, and, for each mixture of classes, those that hold it. Each row has
    as many draws of a stratum as it has groups, so every class keeps weight; where groups differ in size, the number of
    images drawn varies.
    """
    _, number = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    held = np.zeros((number.max() + 1, len(classes)), bool)
    held[number, label] = True
    _, stratum = np.unique(held, axis=0, return_inverse=True)
    rng = np.random.default_rng([seed, len(labels)])
    drawn = np.zeros((count, len(held)))
    for one in range(stratum.max() + 1):
        members = np.flatnonzero(stratum == one)
        drawn[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=count)
    return drawn[:, number]


def percentile(values: np.ndarray) -> Interval:
    """The middle 95 % of bootstrap values, those that are not finite left out."""
    tail = 50 * (1 - CONFIDENCE)
    return [float(edge) for edge in np.percentile(values[np.isfinite(values)], [tail, 100 - tail])]


def resampled(
    labels: np.ndarray,
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    groups: Groups = None,
    count: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Figures of merit of all bootstrap resamples, a block of them in memory at a time.

    Args:
        labels: (n,) classes, by which the draws are stratified.
        figures: from weights (b, n) to {name: (b,)}, such as a partial of `metrics.ranking_weighted`.
        count: resamples.

    Returns:
        {name: (count,)}.
    """
    rows = max(1, BLOCK // max(1, len(labels)))
    parts = [
        figures(resamples(labels, groups, min(rows, count - start), seed + 7919 * start))
        for start in range(0, count, rows)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bootstrap(
    labels: np.ndarray,
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    groups: Groups = None,
    count: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of figures of merit, arguments as for `resampled`: {name: [low, high]}.

    For figures that no sample brings to the edge of their range; there, all resamples are equal and the interval has no width.
    """
    return {name: percentile(values) for name, values in resampled(labels, figures, groups, count, seed).items()}


class _Area:
    """ROC AUC, the effective number of trials behind it, and what each group adds to its error.

    value: the area. totals: (groups,), deviations of the placements summed, so that their squares sum to the variance. trials:
    independent trials whose share would vary as much. images: the effective number of images of the smaller class (Kish 1965).
    events: the effective number of images that err, of the class with fewer.
    """

    def __init__(
        self, labels: np.ndarray, scores: np.ndarray, groups: Groups = None, folds: np.ndarray | None = None
    ) -> None:
        placements, shares = _placements(labels, scores, np.zeros(len(labels), int) if folds is None else folds)
        fake = labels == 1
        self.value = min(1.0, float(shares[fake] @ placements[fake]))
        inside, room = 0 < self.value < 1, self.value * (1 - self.value)
        self.totals = _totals(shares * (placements - self.value), groups)
        lacking = shares * (1 - placements if self.value >= 0.5 else placements)
        inverse, worst, events = 0.0, [], []
        for member in (~fake, fake):
            worst.append(1 / _effective_number(_totals(shares * member, groups)))
            events.append(_effective_number(_totals(lacking * member, groups)))
            variance = float(np.sum(_totals(shares * member * (placements - self.value), groups) ** 2))
            estimated = min(worst[-1], variance / room) if inside else worst[-1]
            inverse += _towards(worst[-1], estimated, events[-1])
        self.trials = 1 / min(inverse, max(worst))
        self.images, self.events = 1 / max(worst), min(events)


def _placements(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each image the share of the other class in its fold that it is ranked rightly against, ties as one half; and its share
    of all pairs, which sums to 1 in each class."""
    placements, shares = np.empty(len(labels)), np.empty(len(labels))
    for fold in np.unique(folds):
        for label in (0, 1):
            rows, others = (np.flatnonzero((folds == fold) & (labels == one)) for one in (label, 1 - label))
            ordered = np.sort(scores[others])
            below = (
                np.searchsorted(ordered, scores[rows], "left") + np.searchsorted(ordered, scores[rows], "right")
            ) / (2 * len(others))
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


def _towards(worst: float, estimated: float, events: float) -> float:
    """An estimated variance drawn towards its greatest possible value, as if one image had been seen that shows that value.

    The estimate rests on the images that err: with none it would be 0, and with many the one added does not count.
    """
    return (events * estimated + worst) / (events + 1)


def effective_images(values: np.ndarray, groups: Groups) -> float:
    """Independent images that would say as much of the mean of these: their number over the design effect, at least 1.

    The design effect is estimated from the totals of groups and drawn (see `_towards`) towards that of groups within which all
    values are equal.
    """
    images, values = len(values), values.astype(float)
    if groups is None:
        return float(images)
    sizes, centred = _totals(np.ones(images), groups), values - values.mean()
    worst, spread = float(sizes @ sizes) / images, float(centred @ centred)
    estimated = min(worst, float(np.sum(_totals(centred, groups) ** 2)) / spread) if spread > 0 else worst
    events = _effective_number(_totals(np.abs(values - np.median(values)), groups))
    return images / max(1.0, _towards(worst, estimated, events))


def _clopper_pearson_of(hits: np.ndarray, groups: Groups, confidence: float) -> Interval:
    return clopper_pearson(float(hits.mean()), effective_images(hits, groups), confidence)


def _square_and_add(first: float, second: float, correlation: float) -> float:
    return float(np.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second)))
