"""Exact kernel density at the paper's size, against scikit-learn's estimator in the one setting that is right there.

scikit-learn's tree gives wrong densities in high dimension; with a leaf as large as the data it sums over all points.
"""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import KernelDensity

from benchmarks.harness import Child, Goal, Table, alternate, peak_mib
from dfganext.density import kde

DIMENSION, BANDWIDTH = 16_384, 0.2
QUERIES = 1000
POINTS = {2000: 2, 10_000: 1}
"""Points, and rounds of the rival, which takes minutes for many."""

OUR_ROUNDS = 3
CHECKED = 3


def main() -> None:
    table = Table("density")
    for count, rounds in POINTS.items():
        measure(table, count, rounds)
        with Child("benchmarks.density") as child:
            table.add(
                case(count),
                "memory beside the data",
                "MiB",
                [child.call("memory", count)],
                goal=Goal("ours", most=1024),
            )
    table.write("numpy", "scikit-learn")


def case(count: int) -> str:
    return f"{count} points, {QUERIES} queries, d = {DIMENSION}"


def measure(table: Table, count: int, rounds: int) -> None:
    points, queries = vectors(count, 0), vectors(QUERIES, 1)
    block, wide = points[:1024].astype(np.float64), queries.astype(np.float64)
    ours = alternate(
        {
            "ours": lambda: kde.log_density(points, queries, BANDWIDTH),
            "float64": lambda: wide @ block.T,
            "float32": lambda: queries @ points[:1024].T,
        },
        OUR_ROUNDS,
    )
    # the product of queries and points, at the rate of one of its blocks
    product = {name: float(np.median(ours[name])) * count / len(block) for name in ("float64", "float32")}
    rival = alternate({"rival": lambda: trees(points, queries)}, rounds, warm_up=False)["rival"]
    table.add(case(count), "time", "s", ours["ours"], rival, goal=Goal("ratio", least=40))
    goal = Goal("share_of_limit", least=0.7)
    table.add(case(count), "against the product in float64", "s", ours["ours"], limit=product["float64"], goal=goal)
    table.add(case(count), "against the product in float32", "s", ours["ours"], limit=product["float32"])
    result = kde.log_density(points, queries[:CHECKED], BANDWIDTH)
    error = np.abs(result - [by_hand(points, query) for query in queries[:CHECKED]]).max()
    table.add(case(count), "error", "nats", [float(error)], goal=Goal("ours", most=1e-6))


def vectors(count: int, seed: int) -> np.ndarray:
    """float32 (count, DIMENSION), as spread as the latents of faces."""
    found = np.random.default_rng(seed).standard_normal((count, DIMENSION), dtype=np.float32)
    found *= 0.25
    return found


def trees(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return KernelDensity(bandwidth=BANDWIDTH, leaf_size=len(points)).fit(points).score_samples(queries)


def by_hand(points: np.ndarray, query: np.ndarray) -> float:
    """The definition, summed in extended precision."""
    distances = np.array([np.square(one.astype(np.longdouble) - query).sum() for one in points])
    exponents = -distances / (2 * np.longdouble(BANDWIDTH) ** 2)
    total = exponents.max() + np.log(np.exp(exponents - exponents.max()).sum())
    return float(
        total - np.log(np.longdouble(len(points))) - DIMENSION / 2 * np.log(2 * np.pi * np.longdouble(BANDWIDTH) ** 2)
    )


def memory(count: int) -> float:
    """MiB that a call adds to the peak of a process that holds the data."""
    points, queries = vectors(count, 0), vectors(QUERIES, 1)
    before = peak_mib()
    kde.log_density(points, queries, BANDWIDTH)
    return peak_mib() - before


if __name__ == "__main__":
    main()
