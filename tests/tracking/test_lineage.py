"""Evaluations of other experiments: complete ones on the same split, newest first."""

import json
import sqlite3
from dataclasses import replace

import pandas as pd
import pytest

from dfganext import files, paths, versions
from dfganext.errors import UserError
from dfganext.settings import as_texts, flatten
from dfganext.tracking import lineage, runs, store


@pytest.fixture
def workspace(tmp_path, enter_root_with_store):
    return enter_root_with_store(tmp_path / "root")


COLUMNS = ("path", "label", "group", "logit", "argmax", "reconstruction_error")


def evaluate(settings, split: str = "a", columns=COLUMNS, fails=False):
    """A run of the stage evaluate, with what a later report reads; returns its ID."""
    paths.SPLIT.parent.mkdir(parents=True, exist_ok=True)
    paths.SPLIT.write_text(f"path,label,split,sha256,group\n{split}.png,real,test,0,0\n")
    paths.EVALUATION.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({column: ["1"] for column in columns}).to_csv(paths.PREDICTIONS, index=False)
    paths.EVALUATE_METRICS.parent.mkdir(exist_ok=True)
    paths.EVALUATE_METRICS.write_text(json.dumps({"convnext": {"accuracy": 0.5}}))
    try:
        with runs.stage_run("evaluate", settings, reads=[paths.SPLIT]) as run:
            run.set_tags(lineage.provenance())
            run.log_artifact(paths.EVALUATION, "evaluation")
            run.log_artifact(paths.EVALUATE_METRICS, "evaluation")
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    return run.id


def test_evaluations_of_this_split_and_no_other_newest_first(workspace, shipped):
    other = evaluate(shipped, split="b")
    first = evaluate(shipped)
    bce = evaluate(replace(shipped, loss="bce", seed=21))
    evaluate(shipped, fails=True)
    found = lineage.evaluations(paths.SPLIT)
    assert [one.run_id for one in found] == [bce, first] and other not in [one.run_id for one in found]
    assert found[0].params == as_texts(flatten(replace(shipped, loss="bce", seed=21))) and found[0].seed == 21
    assert found[1].scores == {"convnext": {"accuracy": 0.5}} and list(found[1].predictions.path) == ["1"]
    assert list(found[1].predictions.group) == [1], "Table I counts near-duplicate groups"


def test_artifacts_of_an_earlier_version_are_left_out(workspace, shipped):
    evaluate(shipped, columns=("path", "label", "p_fake"))
    assert lineage.evaluations(paths.SPLIT) == []


def test_a_run_whose_parent_was_removed_is_left_out(workspace, shipped):
    kept, orphan = evaluate(shipped), evaluate(replace(shipped, seed=21))
    with sqlite3.connect("mlflow.db") as database:  # as `mlflow gc` does
        parent = store.connect()[0].get_run(orphan).data.tags["mlflow.parentRunId"]
        for table in ("params", "tags", "latest_metrics", "metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [parent])
    database.close()
    assert [one.run_id for one in lineage.evaluations(paths.SPLIT)] == [kept]


def test_an_error_of_the_store_is_raised_and_not_treated_as_a_missing_run(workspace, shipped, monkeypatch):
    evaluate(shipped)

    def fails(*_):
        raise store.StoreError("The tracking store http://host cannot be used.")

    monkeypatch.setattr(lineage, "_record", fails)
    with pytest.raises(UserError, match="http://host"):
        lineage.evaluations(paths.SPLIT)


def test_a_missing_split_names_the_command_to_run(workspace):
    with pytest.raises(UserError, match="dvc repro subsample"):
        lineage.evaluations(paths.SPLIT)


DVC = """
stages:
  resize: {deps: [src/resize.py]}
  train_convnext: {deps: [src/train.py], params: [seed, {artifacts/versions.json: [torch]}]}
  train_autoencoder: {deps: [src/autoencoder.py]}
  evaluate: {deps: [src/evaluation]}
"""


@pytest.mark.parametrize(
    ("file", "network", "autoencoder"),
    [
        ("src/resize.py", False, False),
        ("src/train.py", False, True),
        ("src/autoencoder.py", True, False),
        ("src/evaluation/metrics.py", False, False),
        ("src/evaluation/__pycache__/metrics.pyc", True, True),
        ("src/report.py", True, True),
        ("artifacts/weights", False, True),
        ("artifacts/teacher", False, True),
        ("torch", False, True),
        ("timm", True, True),
    ],
)
def test_evaluations_match_only_with_the_same_code_libraries_and_weights(
    workspace, shipped, file, network, autoencoder
):
    paths.VERSIONS.parent.mkdir(exist_ok=True)
    files.write_json(paths.VERSIONS, versions.installed())
    (workspace / "dvc.yaml").write_text(DVC)
    for name in ("src/resize.py", "src/train.py", "src/autoencoder.py", "src/report.py", "src/evaluation/metrics.py"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("1")
    (workspace / "src/evaluation/__pycache__").mkdir()
    paths.WEIGHTS.write_text("random")
    paths.TEACHER.write_text("null")
    evaluate(shipped)
    (before,) = lineage.evaluations(paths.SPLIT)
    assert before.parts == {"convnext", "autoencoder"}
    if "/" in file:
        (workspace / file).write_text("2")
    else:
        files.write_json(paths.VERSIONS, versions.installed() | {file: "9.9"})
    (after,) = lineage.evaluations(paths.SPLIT)
    assert ("convnext" in after.parts, "autoencoder" in after.parts) == (network, autoencoder)
