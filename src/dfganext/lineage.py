"""Evaluations of other experiments, found by lineage: those that MLflow has on record for one and the same split."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pandas as pd

from dfganext import tracking
from dfganext.errors import UserError
from dfganext.report.table1 import Record


def evaluations(split: Path) -> list[Record]:
    """Every finished evaluation of models on exactly these images in exactly this split, newest first.

    A run whose artifacts or whose parent are gone, or whose artifacts were written by a version that kept less, is left out.

    Raises:
        UserError: the split is missing, or the tracking store cannot be used.
    """
    if not split.is_file():
        raise UserError(f"{split} is missing; run `dvc repro subsample` first.")
    client, experiment = tracking.connect()
    wanted = f"tags.stage = 'evaluate' and tags.`dataset.sha256` = '{tracking.sha256_of(split)}'"
    records = []
    finished, newest = f"{wanted} and attributes.status = 'FINISHED'", ["attributes.start_time DESC"]
    for run in tracking.every(
        lambda token: client.search_runs([experiment], finished, order_by=newest, page_token=token)
    ):
        try:
            parent = client.get_run(run.data.tags["mlflow.parentRunId"])
            records.append(_record(client, run.info.run_id, parent.data.params))
        except tracking.StoreError:
            raise
        except (UserError, OSError, ValueError, KeyError):
            continue
    return records


def _record(client: tracking.Client, run_id: str, params: dict[str, str]) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(run_id, "evaluation", folder))
        scores = json.loads((path / "evaluate.json").read_text(encoding="utf-8"))
        predictions = pd.read_csv(path / "predictions.csv", dtype={"path": str})
    columns = ["path", "label", "logit", "argmax", "reconstruction_error"]
    return Record(run_id, params, scores, predictions[columns])  # KeyError where an earlier version wrote fewer
