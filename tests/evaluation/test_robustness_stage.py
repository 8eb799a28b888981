"""The stage `robustness`: which test images it uses."""

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dfganext import settings
from dfganext.data import arrays
from dfganext.data.arrays import Images
from dfganext.evaluation import robustness
from dfganext.inference.detector import Detector
from dfganext.tracking import runs
from stages import robustness as stage

LABELS = np.repeat([0, 1], 50)
PIXELS = np.arange(100, dtype=np.uint8)[:, None, None, None]
"""Each image's pixel is its row."""


@pytest.fixture
def taken(shipped, tmp_path, monkeypatch):
    """The rows that the stage uses, for a seed and a number of images per class."""

    @contextmanager
    def stage_run(*_, **__):
        yield SimpleNamespace(log_artifact=lambda *_: None, log_metrics=lambda *_: None)

    rows = []

    def measure(predict, images, labels, *_, **__):
        rows.append(images[:, 0, 0, 0])
        assert (labels == LABELS[images[:, 0, 0, 0]]).all()
        return pd.DataFrame({"transform": ["none"], "strength": [0.0], "accuracy": [0.5]})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "stage_run", stage_run)
    monkeypatch.setattr(Detector, "load", lambda *_: SimpleNamespace(threshold=0.5, decision=None))
    monkeypatch.setattr(
        arrays, "read", lambda *_: Images(PIXELS, LABELS, [str(row) for row in range(100)], np.arange(100))
    )
    monkeypatch.setattr(robustness, "measure", measure)

    def call(seed: int, per_class: int | None) -> list[int]:
        chosen = dataclasses.replace(shipped, seed=seed, robustness=settings.Robustness(per_class))
        monkeypatch.setattr(stage, "load_settings", lambda: chosen)
        stage.main()
        return rows[-1].tolist()

    return call


def test_the_seed_draws_images_at_random_instead_of_the_first_by_path(taken):
    rows = taken(1, 10)
    assert rows == sorted(set(rows)) and sum(row < 50 for row in rows) == 10 and len(rows) == 20
    assert max(rows[:10]) > 10 and max(rows[10:]) > 60
    assert taken(1, 10) == rows != taken(2, 10)


def test_null_takes_all(taken):
    assert taken(1, None) == list(range(100))
