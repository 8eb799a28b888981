"""Evaluations of other experiments, found by lineage: those that MLflow has on record for one and the same split.

An evaluation belongs beside this workspace's only where the same code, library versions and weights file made it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
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
"""By model, the stages whose code and libraries decide its evaluation, given the split."""


def provenance(root: Path = Path()) -> dict[str, str]:
    """Tags of an evaluation in the workspace `root`, by model: sha256 over code, library versions and weights file."""
    weights = root / paths.WEIGHTS
    started_from = files.sha256_of(weights) if weights.is_file() else None
    found = {}
    for part, stages in STAGES.items():
        decisive: dict[str, object] = {stage: versions.declared(stage, root, root / paths.VERSIONS) for stage in stages}
        if part == NETWORK:
            decisive["weights"] = started_from
        text = json.dumps(decisive, sort_keys=True)
        found[f"provenance.{part}"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def evaluations(split: Path) -> list[Record]:
    """Every finished evaluation of models on exactly these images in exactly this split, newest first.

    A run whose artifacts or whose parent are gone, or whose artifacts were written by a version that kept less, is left out.
    `Record.parts` names the models that this workspace's code, library versions and weights file made.

    Raises:
        UserError: the split is missing, or the tracking store cannot be used.
    """
    if not split.is_file():
        raise UserError(f"{split} is missing; run `dvc repro subsample` first.")
    client, experiment = store.connect()
    wanted = f"tags.stage = 'evaluate' and tags.`dataset.sha256` = '{files.sha256_of(split)}'"
    records, here = [], provenance()
    finished, newest = f"{wanted} and attributes.status = 'FINISHED'", ["attributes.start_time DESC"]
    for run in store.paginate(
        lambda token: client.search_runs([experiment], finished, order_by=newest, page_token=token)
    ):
        try:
            parent = client.get_run(run.data.tags["mlflow.parentRunId"])
            parts = {part for part in STAGES if run.data.tags.get(f"provenance.{part}") == here[f"provenance.{part}"]}
            records.append(_record(client, run.info.run_id, parent.data.params, frozenset(parts)))
        except store.StoreError:
            raise
        except (UserError, OSError, ValueError, KeyError):
            continue
    return records


def _record(client: store.Client, run_id: str, params: dict[str, str], parts: frozenset[str]) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(run_id, "evaluation", folder))
        scores = json.loads((path / "evaluate.json").read_text(encoding="utf-8"))
        predictions = pd.read_csv(path / "predictions.csv", dtype={"path": str})
    columns = ["path", "label", "logit", "argmax", "reconstruction_error"]
    return Record(run_id, params, scores, predictions[columns], parts)  # KeyError where an earlier version wrote fewer
