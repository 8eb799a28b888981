"""Training curves: the metrics, which are repeatable, in one table, and the speed in another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dfganext import files
from dfganext.training.loop import History, Metrics


class Curves:
    """An `on_epoch` of `loop.fit`: passes the metrics of each epoch to a tracker, prints them and collects the speed.

    Args:
        epochs: of the whole training.
    """

    def __init__(self, track: Callable[[Metrics, int], None], epochs: int) -> None:
        self.track, self.epochs = track, epochs
        self.speeds: list[dict[str, float]] = []

    def __call__(self, row: Metrics, speed: float | None) -> None:
        """Report an epoch. `speed` is in images per second; None if an earlier run trained the epoch."""
        epoch = int(row["epoch"])
        numbers = {name: value for name, value in row.items() if name != "epoch"}
        if speed is not None:
            numbers["images_per_second"] = speed
            self.speeds.append({"epoch": epoch, "images_per_second": round(speed, 2)})
        self.track(numbers, epoch)
        tqdm.write(
            f"epoch {epoch} of {self.epochs}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        )

    def write(self, history: History, table: Path, speeds: Path) -> None:
        """Write both tables. Only the first is a stage output, because the speed differs each time."""
        files.write_table(table, pd.DataFrame(history.epochs).astype({"epoch": int}))
        files.write_table(speeds, pd.DataFrame(self.speeds, columns=["epoch", "images_per_second"]))
