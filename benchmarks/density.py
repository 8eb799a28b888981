"""Exact kernel density at the paper's size, against scikit-learn's estimator and against NumPy in float64.

scikit-learn's trees give wrong densities in high dimension unless a leaf holds all points, which makes them sum over all points.
Both trees then take the same time for a query, and the ball tree is the faster to build. Queries are divided among as many
processes as there are cores. The NumPy rival is what an expert would write: a matrix product and a log-sum-exp, in chunks.
"""

from __future__ import annotations

import multiprocessing

import numpy as np
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity

from benchmarks.harness import Child, Goal, Table, alternate, peak_mib
from dfganext.density import kde
from dfganext.runtime import cores

DIMENSION, BANDWIDTH = 16_384, 0.2
QUERIES = 1000
POINTS = {2000: 2, 10_000: 1}
"""{number of points: rounds of scikit-learn}; with 10,000 points a round takes a minute."""

CHUNK = 512
"""Queries per chunk of the NumPy rival."""

ROUNDS = 3
CHECKED = 3
SAME = 1e-6
"""Largest allowed difference between the rivals' log densities and ours, in nats."""

NUMPY = "NumPy in float64, a matrix product and log-sum-exp"


def main() -> None:
    table = Table("density")
    for count, rounds in POINTS.items():
        compare(table, count, QUERIES, DIMENSION, rounds)
    table.write("numpy", "scikit-learn")


def compare(table: Table, count: int, query_count: int, dimension: int, rounds: int) -> None:
    """Time, error and memory with `count` points; `rounds` of scikit-learn."""
    case = f"{count} points, {query_count} queries, d = {dimension}"
    points, queries = vectors(count, dimension, 0), vectors(query_count, dimension, 1)
    tree = f"scikit-learn, `leaf_size` = n, {cores()} processes"
    answers: dict[str, np.ndarray] = {}

    def answer(name: str) -> None:
        function = {"ours": kde.log_density, "numpy": in_numpy, "trees": in_trees}[name]
        answers[name] = function(points, queries, BANDWIDTH)

    block = points[:1024].astype(np.float64)
    wide = queries.astype(np.float64)
    seconds = alternate(
        {
            "ours": lambda: answer("ours"),
            "numpy": lambda: answer("numpy"),
            "float64": lambda: wide @ block.T,
            "float32": lambda: queries @ points[:1024].T,
        },
        ROUNDS,
    )
    seconds |= alternate({"trees": lambda: answer("trees")}, rounds, warm_up=False)
    for name in ("numpy", "trees"):
        difference = np.abs(answers["ours"] - answers[name]).max()
        assert difference <= SAME, f"{name} differs by {difference} nats"

    ours = seconds["ours"]
    table.add(case, "time", "s", ours, seconds["trees"], goal=Goal("ratio", least=20), against=tree)
    table.add(case, "time", "s", ours, seconds["numpy"], goal=Goal("ratio", least=1), against=NUMPY)
    # the product of queries and points, at the rate of one of its blocks
    product = {name: float(np.median(seconds[name])) * count / len(block) for name in ("float64", "float32")}
    goal = Goal("share_of_limit", least=0.7)
    table.add(case, "against the product in float64", "s", ours, limit=product["float64"], goal=goal)
    table.add(case, "against the product in float32", "s", ours, limit=product["float32"])

    exact = np.array([by_hand(points, query, BANDWIDTH) for query in queries[:CHECKED]])
    errors = {name: [float(np.abs(found[:CHECKED] - exact).max())] for name, found in answers.items()}
    goal = Goal("ours", most=SAME)
    table.add(case, "error", "nats", errors["ours"], errors["trees"], goal=goal, against=tree)
    table.add(case, "error", "nats", errors["ours"], errors["numpy"], goal=goal, against=NUMPY)
    memory = {}
    for name in ("ours", "numpy"):
        with Child("benchmarks.density") as child:
            memory[name] = [child.call("memory", name, count, query_count, dimension)]
    goal = Goal("ours", most=1024)
    table.add(case, "memory beside the data", "MiB", memory["ours"], memory["numpy"], goal=goal, against=NUMPY)


def vectors(count: int, dimension: int, seed: int) -> np.ndarray:
    """float32 (count, dimension), with the standard deviation of the latents of faces."""
    found = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    found *= 0.25
    return found


def in_trees(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> np.ndarray:
    """scikit-learn's log densities, with the queries divided among forked processes, which share the fitted tree."""
    global _estimator
    _estimator = KernelDensity(bandwidth=bandwidth, algorithm="ball_tree", leaf_size=len(points)).fit(points)
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        return np.concatenate(pool.map(_score, np.array_split(queries, cores())))


_estimator: KernelDensity


def _score(queries: np.ndarray) -> np.ndarray:
    return _estimator.score_samples(queries)


def in_numpy(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> np.ndarray:
    """Log densities by |q|^2 - 2 q.x + |x|^2 in float64, a chunk of queries at a time."""
    points = points.astype(np.float64)
    norms = np.einsum("ij,ij->i", points, points)
    sums = []
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK].astype(np.float64)
        squared = chunk @ points.T
        squared *= -2
        squared += np.einsum("ij,ij->i", chunk, chunk)[:, None]
        squared += norms
        sums.append(logsumexp(squared / (-2 * bandwidth**2), axis=1))
    return np.concatenate(sums) - np.log(len(points)) - points.shape[1] / 2 * np.log(2 * np.pi * bandwidth**2)


def by_hand(points: np.ndarray, query: np.ndarray, bandwidth: float) -> float:
    """The definition of the log density, summed in extended precision."""
    h = np.longdouble(bandwidth)
    distances = np.array([np.square(one.astype(np.longdouble) - query).sum() for one in points])
    exponents = -distances / (2 * h**2)
    total = exponents.max() + np.log(np.exp(exponents - exponents.max()).sum())
    return float(total - np.log(np.longdouble(len(points))) - len(query) / 2 * np.log(2 * np.pi * h**2))


def memory(name: str, count: int, query_count: int, dimension: int) -> float:
    """MiB that a call adds to the peak memory of a process that holds the data."""
    points, queries = vectors(count, dimension, 0), vectors(query_count, dimension, 1)
    before = peak_mib()
    {"ours": kde.log_density, "numpy": in_numpy}[name](points, queries, BANDWIDTH)
    return peak_mib() - before


if __name__ == "__main__":
    main()
