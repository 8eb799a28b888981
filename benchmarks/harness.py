"""Alternating timings, and the tables of results."""

from __future__ import annotations

import csv
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from dfganext import runtime, settings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

COLUMNS = (
    "case",
    "measure",
    "unit",
    "ours",
    "ours_low",
    "ours_high",
    "against",
    "rival",
    "rival_low",
    "rival_high",
    "ratio",
    "limit",
    "share_of_limit",
    "goal",
    "reached",
)
"""ours, rival: medians, with the lowest and the highest value. against: a description of the rival. ratio: how many times faster
(or smaller) ours is. limit: the best that this hardware allows, measured in the same run, in the same unit."""

NUMBERS = ("ours", "ours_low", "ours_high", "rival", "rival_low", "rival_high", "ratio", "limit", "share_of_limit")


@dataclass(frozen=True)
class Goal:
    """A bound for one column of a row: at least `least`, or at most `most`."""

    of: Literal["ratio", "share_of_limit", "ours"]
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        sign, bound = (">=", self.least) if self.least is not None else ("<=", self.most)
        return f"{self.of} {sign} {bound:g}"

    def reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass
class Table:
    """The results of one benchmark."""

    subject: str
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(
        self,
        case: str,
        measure: str,
        unit: str,
        ours: Sequence[float],
        rival: Sequence[float] = (),
        limit: float | None = None,
        goal: Goal | None = None,
        better: Literal["lower", "higher"] = "lower",
        against: str = "",
    ) -> None:
        """Add a row and print it.

        Args:
            ours, rival: values of all rounds, in `unit`.
            limit: in the same unit.
            better: whether lower or higher values are better.
            against: a description of the rival, as in the README's table.
        """
        if bool(rival) != bool(against):
            raise ValueError(f"{case}, {measure}: give both the rival's values and its description, or neither")
        numbers: dict[str, float | None] = dict.fromkeys(NUMBERS)
        for name, values in (("ours", ours), ("rival", rival)):
            if values:
                numbers |= {name: statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}
        mine, other = numbers["ours"], numbers["rival"]
        if mine and other:
            numbers["ratio"] = other / mine if better == "lower" else mine / other
        if mine and limit:
            numbers |= {"limit": limit, "share_of_limit": limit / mine if better == "lower" else mine / limit}
        row = {name: "" if value is None else f"{value:.4g}" for name, value in numbers.items()}
        reached = "" if goal is None else ("yes" if goal.reached(numbers[goal.of] or 0.0) else "no")
        self.rows.append(
            {"case": case, "measure": measure, "unit": unit, "against": against}
            | row
            | {"goal": str(goal or ""), "reached": reached}
        )
        print(self._line(self.rows[-1]), flush=True)

    def write(self, *packages: str) -> None:
        """Write the rows to a file named by the hardware and the versions of Python, PyTorch and `packages`."""
        RESULTS.mkdir(exist_ok=True)
        versions = [
            f"python{platform.python_version()}",
            *(f"{name}{metadata.version(name)}" for name in ("torch", *packages)),
        ]
        target = RESULTS / f"{'-'.join([self.subject, hardware(), *versions])}.csv"
        with target.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        print(f"{target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target}\n", flush=True)

    def _line(self, row: Mapping[str, str]) -> str:
        parts = [f"{self.subject}: {row['case']}, {row['measure']}: {row['ours']} {row['unit']}"]
        parts[0] += f" ({row['ours_low']}…{row['ours_high']})" if row["ours_low"] != row["ours_high"] else ""
        if row["rival"]:
            parts.append(
                f"{row['against']}: {row['rival']} ({row['rival_low']}…{row['rival_high']}), ratio {row['ratio']}"
            )
        if row["limit"]:
            parts.append(f"limit {row['limit']}, share {row['share_of_limit']}")
        if row["goal"]:
            parts.append(f"{row['goal']}: {row['reached']}")
        return "; ".join(parts)


def alternate(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds per round of each contender. They alternate, so that a change of the machine's speed affects all of them."""
    if warm_up:
        for contender in contenders.values():
            contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            gc.collect()
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def bursts(contenders: Mapping[str, Callable[[], object]], turns: int, calls: int) -> dict[str, list[float]]:
    """Seconds of each call. In a turn, each contender is called several times in succession, after one call that does not count;
    another one begins each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(turns):
        first = turn * len(names) // turns
        for name in names[first:] + names[:first]:
            seconds[name] += alternate({name: contenders[name]}, calls)[name]
    return seconds


def plain_environment() -> dict[str, str]:
    """This process's environment without the variables that `runtime.prepare` set, with this Python first on PATH."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def shipped_but(changes: dict[str, Any]) -> dict[str, Any]:
    """The shipped params.yaml as nested dictionaries, with some values changed, by keys such as convnext.size."""
    tree: dict[str, Any] = {}
    for key, value in (settings.flatten(settings.load_settings(ROOT / "params.yaml")) | changes).items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


class Child:
    """A separate process that calls functions of a module, one at a time, and returns their results as JSON.

    Args:
        module: the name of the module.
        plain: run it without `runtime.prepare`, as rivals run.
    """

    def __init__(self, module: str, plain: bool = False) -> None:
        loop = f"import json, sys, {module} as module\nfor line in sys.stdin:\n"
        loop += "    name, arguments = json.loads(line)\n"
        loop += "    print('answer', json.dumps(getattr(module, name)(*arguments)), flush=True)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", loop],
            cwd=ROOT,
            env=plain_environment() | ({"BENCHMARKS_PLAIN": "1"} if plain else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, function: str, *arguments: object) -> Any:
        """Call the module's function; returns its result. RuntimeError if it raises."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, arguments]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"{function} failed in its process")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def peak_mib() -> float:
    """Peak resident size of this process so far, in MiB. Linux only; getrusage would include the parent's memory at the fork."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def hardware() -> str:
    """Name of the processor, number of cores, and name of the GPU if there is one, in characters safe for a file name."""
    import torch

    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    parts = [named[1] if named else platform.processor() or platform.machine(), f"{runtime.cores()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "_", part).strip("_") for part in parts)
