"""Curves of training: what is repeatable goes to one table, how fast it went to another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dfganext import files
from dfganext.training.loop import History, Metrics


class Curves:
    """Collects what `loop.fit` reports after each epoch, passes it on to a tracker and prints a line of it."""

    def __init__(self, track: Callable[[Metrics, int], None]) -> None:
        self.track = track
        self.speeds: list[dict[str, float]] = []

    def __call__(self, row: Metrics, speed: float | None) -> None:
        """Take an epoch's metrics and, if it was trained in this process, its images per second."""
        epoch = int(row["epoch"])
        numbers = {name: value for name, value in row.items() if name != "epoch"}
        if speed is not None:
            numbers["images_per_second"] = speed
            self.speeds.append({"epoch": epoch, "images_per_second": round(speed, 2)})
        self.track(numbers, epoch)
        tqdm.write(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def write(self, history: History, table: Path, speeds: Path) -> None:
        """Write both tables. Only the first is the same each time, so only it is an output of a stage."""
        files.write_table(table, pd.DataFrame(history.epochs).astype({"epoch": int}))
        files.write_table(speeds, pd.DataFrame(self.speeds, columns=["epoch", "images_per_second"]))
