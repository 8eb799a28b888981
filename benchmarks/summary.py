"""The README's table of ratios, from the files in benchmarks/results/: `python -m benchmarks.summary`."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import RESULTS

LINES = (
    ("density", "exact kernel density, d = 16,384, of {points} points", r"(?P<points>\d+) points"),
    ("resize", "{format} of 1024 px to 256, {filter}", r"(?P<format>\w+) 1024 to 256, (?P<filter>\w+)$"),
    ("train_cpu", "an epoch on the CPU, {case}", r"(?P<case>.+)"),
    ("train_gpu", "an epoch on the GPU at {size} px", r"(?P<size>\d+) px"),
    ("engines", "the forward pass of one image, {case}", r"(?P<case>.+), batches of 1$"),
    ("serve", "one served image, {kind}", r"one image, (?P<kind>.+)"),
    ("serve", "{clients} clients at once, {kind}", r"(?P<clients>\d+) clients, (?P<kind>.+)"),
    ("predict", "`dfganext predict` on JPEG files, {case}", r"(?P<case>.+ px)"),
    ("score", "`dfganext score` on JPEG files, {case}", r"(?P<case>.+ images)$"),
    ("explain", "Grad-CAM of both classes, {case}", r"(?P<case>.+ px)"),
    (
        "repro",
        "`dvc repro` up to `resize`, nothing to do, {count} images",
        r"nothing to do, (?P<count>\d+)",
    ),
)
"""Benchmark, what was timed, and the pattern of its cases."""

SPEEDS = ("time", "rate")
"""First words of the measures that are speeds."""


def main() -> None:
    print("\n".join(table()))


def table() -> list[str]:
    """Lines of Markdown: one row per case and rival, in the order of LINES."""
    rows = results()
    lines = ["| what | against | times as fast |", "|---|---|---|"]
    for subject, what, pattern in LINES:
        for row in rows.get(subject, []):
            match = re.match(pattern, row["case"])
            if match and row["ratio"] and row["measure"].startswith(SPEEDS):
                text = what.format(**match.groupdict())
                lines.append(f"| {text} | {row['against']} | {float(row['ratio']):.1f} |")
    return lines


def results() -> Mapping[str, list[dict[str, str]]]:
    """Rows by benchmark; if it was measured on several machines, those of the last file by name."""
    found = {}
    for file in sorted(RESULTS.glob("*.csv")):
        with Path(file).open(newline="", encoding="utf-8") as stream:
            found[file.name.split("-")[0]] = list(csv.DictReader(stream))
    return found


if __name__ == "__main__":
    main()
