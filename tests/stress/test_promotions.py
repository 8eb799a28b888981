"""Eight promotions at once, again and again: the best of the eight models is champion, on SQLite and on PostgreSQL."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import detector, enter_root, faces, promote
from processes import run_at_once
from safetensors.numpy import load_file, save_file
from servers import postgresql

from dfganext import files
from dfganext.tracking import registry, store

pytestmark = [pytest.mark.slow, pytest.mark.stress]

AT_ONCE = 8
ROUNDS = 20
RESULTS = Path(__file__).with_name("results") / "promotions.csv"

PROMOTE = """
import sys
from contextlib import nullcontext
import helpers
from dfganext.tracking import store
lock, name, run_id = sys.argv[1:]
if lock == "no lock":
    store.lock = lambda purpose="setup": nullcontext()
helpers.promote(name, run_id)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def tracking(request, tmp_path, monkeypatch):
    """A root with images, its MLflow store on a database, and whether processes have the lock of one machine."""
    enter_root(tmp_path, monkeypatch)
    faces(tmp_path)
    if request.param == "sqlite":
        yield request.param, "lock"
    else:
        with postgresql() as database:  # which machines share, and no lock
            monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
            yield request.param, "no lock"


def candidates(folder: Path, rng: np.random.Generator) -> list[str]:
    """Detectors of different quality: the good one, with noise in its last layer."""
    for index in range(AT_ONCE):
        weights = load_file(detector(folder / f"{index}", good=True) / "model.safetensors")
        for name in weights:
            if name.startswith("head.fc"):
                weights[name] += rng.normal(0, 0.05, weights[name].shape).astype(np.float32)
        save_file(weights, folder / f"{index}" / "model.safetensors")
    return [str(folder / f"{index}") for index in range(AT_ONCE)]


@pytest.mark.timeout(7200)
def test_the_best_of_eight_simultaneous_promotions_is_champion(tracking, tmp_path, stress):
    database, lock = tracking
    client, experiment = store.connect()
    rng = np.random.default_rng(8)
    seconds = []
    for number in range(ROUNDS if stress else 1):
        names = candidates(tmp_path / f"round {number}", rng)
        run_id = client.create_run(experiment, run_name="promote").info.run_id
        began = time.monotonic()
        run_at_once(PROMOTE, [[lock, name, run_id] for name in names], tmp_path)
        seconds.append(time.monotonic() - began)

        champion = registry.champion(client)
        digests = {files.sha256_of(Path(name) / "model.safetensors"): name for name in names}
        versions = registry.versions(client)
        assert sorted(one.tags["weights.sha256"] for one in versions) == sorted(digests), "a version twice, or none"
        assert {one.tags["promotion"] for one in versions} <= {"promoted", "refused"}
        # no other of the eight is better than the champion
        best = digests[champion.tags["weights.sha256"]]
        later = [promote(name, run_id) for name in names if name != best]
        assert [one.outcome for one in later] == ["refused"] * (AT_ONCE - 1)
        assert registry.champion(client).version == champion.version
        client.delete_registered_model(registry.MODEL)
    if stress:
        RESULTS.parent.mkdir(exist_ok=True)
        row = {"database": database, "at once": AT_ONCE, "rounds": ROUNDS, "promotions": AT_ONCE * ROUNDS}
        row |= {"seconds per round, median": round(float(np.median(seconds)), 1), "longest": round(max(seconds), 1)}
        rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.exists() else []
        rows = [one for one in rows if one["database"] != database] + [row]
        pd.DataFrame(rows).sort_values("database").to_csv(RESULTS, index=False)
