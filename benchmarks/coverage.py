"""How often 95 % intervals contain the true value, for simulated scores of known distributions: results/coverage.csv.

True values are exact or, for t and for differences, integrated numerically. All draws are seeded, so the file is the same on every
machine. One row per metric, family, true value and number of images per class: coverage, its goal of 0.93, how often the interval
lies above and below the true value, and the mean width.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy import integrate, optimize, stats

from benchmarks.harness import RESULTS
from dfganext.evaluation import intervals

AREAS = (0.75, 0.95, 0.99, 0.999)
SIZES = (40, 80, 1000)
SAMPLES = 1000
RESAMPLED = 300
"""Samples for the metrics that need a bootstrap, with at most 80 images per class."""
GOAL = 0.93
COLUMNS = ("metric", "family", "truth", "images_per_class", "samples", "coverage", "goal", "above", "below", "width")

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""Scores of real and fake images."""


def families(area: float) -> dict[str, Draw]:
    """Families of distributions with this true ROC AUC."""
    distance = stats.norm.ppf(area)
    heavy = _distance_of_t(area)
    return {
        "binormal": lambda rng, n: (rng.normal(size=n), rng.normal(distance * 2**0.5, 1, n)),
        "binormal, fakes twice as wide": lambda rng, n: (rng.normal(size=n), rng.normal(distance * 5**0.5, 2, n)),
        "exponential": lambda rng, n: (rng.exponential(size=n), rng.exponential(area / (1 - area), n)),
        "some fakes like real images": lambda rng, n: _mixture(rng, n, 2 * (1 - area)),
        "t, 3 degrees of freedom": lambda rng, n: (rng.standard_t(3, n), heavy + rng.standard_t(3, n)),
    }


def main() -> None:
    rows = [
        *(area_row(name, area, size) for area in AREAS for size in SIZES for name in families(area)),
        *(difference_row(metric, area, size) for metric in DIFFERENCES for area in AREAS for size in SIZES),
        *(rate_row(name, area, size) for area in AREAS[1:] for size in SIZES for name in ("binormal",)),
        *(error_row(area, size) for area in AREAS for size in SIZES[:2]),
        *(grouped_row(area, size) for area in AREAS for size in SIZES),
    ]
    with (RESULTS / "coverage.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def area_row(family: str, area: float, size: int, samples: int = SAMPLES) -> dict[str, Any]:
    draw = families(area)[family]
    return _row("roc_auc", family, area, size, samples, lambda rng: intervals.roc_auc(*_labelled(*draw(rng, size))))


def grouped_row(area: float, size: int, samples: int = SAMPLES) -> dict[str, Any]:
    """Groups of four images of one class, whose scores correlate by 0.8."""
    distance, groups = stats.norm.ppf(area) * 2**0.5, np.repeat(np.arange(size // 2), 4)

    def interval(rng: np.random.Generator) -> intervals.Interval:
        common, own = rng.normal(size=size // 2), rng.normal(size=2 * size)
        labels = np.repeat([0, 1], size)
        return intervals.roc_auc(labels, 0.8**0.5 * common[groups] + 0.2**0.5 * own + distance * labels, groups)

    return _row("roc_auc, groups of four", "binormal", area, size, samples, interval)


DIFFERENCES: tuple[intervals.Compared, ...] = ("roc_auc", "accuracy", "log_loss")


def difference_row(metric: intervals.Compared, area: float, size: int, samples: int = SAMPLES) -> dict[str, Any]:
    """The area of the first model is twice as far from 1 as the second's; scores correlate by 0.7; p_fake are exact posteriors."""
    distances = stats.norm.ppf([area, 1 - 2 * (1 - area)]) * 2**0.5
    wrong = stats.norm.sf(distances / 2)
    truth = {
        "roc_auc": 1 - area,
        "accuracy": float(wrong[1] - wrong[0]),
        "log_loss": _log_loss(distances[0]) - _log_loss(distances[1]),
    }[metric]
    labels = np.repeat([0, 1], size)

    def interval(rng: np.random.Generator) -> intervals.Interval:
        common = rng.normal(size=2 * size)
        noises = [0.7**0.5 * common + 0.3**0.5 * rng.normal(size=2 * size) for _ in distances]
        first, second = (
            1 / (1 + np.exp(-d * (noise + d * labels - d / 2))) for d, noise in zip(distances, noises, strict=True)
        )
        return intervals.paired_difference(labels, first, second, metric)["interval"]

    return _row(f"{metric}, paired difference", f"binormal, {area} as the first area", truth, size, samples, interval)


def rate_row(family: str, area: float, size: int, samples: int = SAMPLES) -> dict[str, Any]:
    distance = stats.norm.ppf(area) * 2**0.5
    truth = float(stats.norm.sf(stats.norm.isf(0.01) - distance))
    draw = families(area)[family]
    return _row(
        "tpr_at_1_percent_fpr",
        family,
        truth,
        size,
        samples,
        lambda rng: intervals.tpr_at_fpr(*_labelled(*draw(rng, size)), 0.01),
    )


def error_row(area: float, size: int, samples: int = RESAMPLED) -> dict[str, Any]:
    distance = stats.norm.ppf(area) * 2**0.5
    draw = families(area)["binormal"]

    def interval(rng: np.random.Generator) -> intervals.Interval:
        return intervals.average_precision_and_eer(*_labelled(*draw(rng, size)), count=400)["eer"]

    return _row("eer", "binormal", float(stats.norm.sf(distance / 2)), size, samples, interval)


def _row(
    metric: str,
    family: str,
    truth: float,
    size: int,
    samples: int,
    interval: Callable[[np.random.Generator], intervals.Interval],
) -> dict[str, Any]:
    found = np.array([interval(np.random.default_rng([seed, size])) for seed in range(samples)])
    above, below = float(np.mean(found[:, 0] > truth)), float(np.mean(found[:, 1] < truth))
    width = float(np.mean(found[:, 1] - found[:, 0]))
    values = (metric, family, f"{truth:.6g}", size, samples, f"{1 - above - below:.4g}", GOAL)
    row = dict(zip(COLUMNS, (*values, f"{above:.4g}", f"{below:.4g}", f"{width:.4g}"), strict=True))
    print(*row.values(), sep=", ", flush=True)
    return row


def _labelled(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([0, 1], [len(real), len(fake)]), np.concatenate([real, fake])


def _mixture(rng: np.random.Generator, size: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of real images uniform on 0...1, of fakes above, except for a share of fakes that score like real images."""
    alike = rng.random(size) < share
    return rng.random(size), rng.random(size) + 2 * ~alike


@cache
def _distance_of_t(area: float) -> float:
    """Distance of two t distributions with 3 degrees of freedom at which one exceeds the other with this probability."""

    def exceeds(distance: float) -> float:
        return integrate.quad(lambda x: stats.t.pdf(x, 3) * stats.t.cdf(x + distance, 3), -200, 200, limit=500)[0]

    return float(optimize.brentq(lambda distance: exceeds(distance) - area, 0, 60))


def _log_loss(distance: float) -> float:
    """Expected log loss of the exact posterior of two normal distributions, by symmetry that of one class."""
    return integrate.quad(
        lambda x: stats.norm.pdf(x, distance) * np.logaddexp(0, -distance * (x - distance / 2)), -12, distance + 12
    )[0]


if __name__ == "__main__":
    main()
