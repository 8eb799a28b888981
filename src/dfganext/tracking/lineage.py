"""Evaluations of other experiments on the same split, found in MLflow.

An evaluation is comparable with this workspace's if the same code, library versions and weights file made it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import suppress
from pathlib import Path

import pandas as pd

from dfganext import files, paths, versions
from dfganext.errors import UserError
from dfganext.report.table1 import AUTOENCODER, NETWORK, Record
from dfganext.tracking import store

STAGES = {
    NETWORK: ("resize", "train_convnext", "evaluate"),
    AUTOENCODER: ("resize", "train_autoencoder", "evaluate"),
}
"""By model, the stages whose code and libraries determine its evaluation, given the split."""


def provenance() -> dict[str, str]:
    """Tags of an evaluation in this workspace, by model: sha256 of code, library versions and weights files."""
    tags = {}
    for part, stages in STAGES.items():
        inputs: dict[str, object] = {stage: versions.declared(stage, Path(), paths.VERSIONS) for stage in stages}
        if part == NETWORK:
            for name, file in (("weights", paths.WEIGHTS), ("teacher", paths.TEACHER)):
                inputs[name] = files.sha256_of(file) if file.is_file() else None
        tags[f"provenance.{part}"] = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return tags


def evaluations(split: Path) -> list[Record]:
    """Every finished evaluation of models on exactly these images in exactly this split, newest first.

    A run is left out if its artifacts or its parent are gone, or if an earlier version wrote artifacts without some columns.
    `Record.parts` names the models that this workspace's code, library versions and weights file made.

    Raises:
        UserError: the split is missing, or the tracking store cannot be used.
    """
    if not split.is_file():
        raise UserError(f"{split} is missing; run `dvc repro subsample` first.")
    client, experiment = store.connect()
    query = f"tags.stage = 'evaluate' and tags.`dataset.sha256` = '{files.sha256_of(split)}' "
    query += "and attributes.status = 'FINISHED'"
    found = store.paginate(client.search_runs, [experiment], query, order_by=["attributes.start_time DESC"])
    records, ours = [], provenance()
    for run in found:
        tags = run.data.tags
        parts = frozenset(part for part in STAGES if tags.get(f"provenance.{part}") == ours[f"provenance.{part}"])
        with suppress(store.NotFoundError, OSError, ValueError, KeyError):
            parent = client.get_run(tags["mlflow.parentRunId"])
            records.append(_record(client, run.info.run_id, parent.data.params, parts))
    return records


def _record(client: store.Client, run_id: str, params: dict[str, str], parts: frozenset[str]) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(run_id, "evaluation", folder))
        scores = json.loads((path / "evaluate.json").read_text(encoding="utf-8"))
        predictions = pd.read_csv(path / "predictions.csv", dtype={"path": str})
    columns = ["path", "label", "group", "logit", "argmax", "reconstruction_error"]
    return Record(run_id, params, scores, predictions[columns], parts)  # KeyError if an earlier version wrote fewer
