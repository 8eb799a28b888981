"""Results of a workspace as rows of a CSV file."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import evidence
from dfganext import paths
from dfganext.errors import UserError

DECISIONS = {"unsure": 0.1, "novel": 0.02, "accuracy": 0.98}


@pytest.fixture
def workspace(root, tmp_path) -> Path:
    """The files of a finished run, made up."""

    def write(path: Path, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write(paths.PARAMS, (root / paths.PARAMS).read_text())
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    who = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.org"]
    subprocess.run(["git", *who, "commit", "--quiet", "-m", "settings"], cwd=tmp_path, check=True)
    write(paths.SPLIT, "path\n")
    intervals = {"accuracy": [0.7, 0.9], "roc_auc": [0.8, 1.0]}
    scores = {"images": 4, "accuracy": 0.75, "roc_auc": 0.9, "intervals": intervals, "decisions": DECISIONS}
    write(paths.EVALUATE_METRICS, json.dumps({"convnext": scores}))
    write(paths.PREDICTIONS, "label,predicted\nreal,real\nreal,fake\nfake,fake\nfake,fake\n")
    columns = "transform,strength,images,accuracy,accuracy_low,accuracy_high,roc_auc,roc_auc_low,roc_auc_high"
    columns += ",fake_recall,real_recall,unsure,novel,decided_accuracy,trained_on"
    rows = ["none,0,4,1,1,1,1,1,1,1,1,0,0,1,False", "jpeg,50,4,0.5,0.4,0.6,0.7,0.6,0.8,0.25,0.75,0.3,0.1,,True"]
    write(paths.ROBUSTNESS, "\n".join([columns, *rows]) + "\n")
    one_class = {"images": 3, "accuracy": 1.0, "roc_auc": None, "true_positive_rate": None, "false_positive_rate": 0.0}
    one_class |= {"intervals": {"accuracy": [0.4, 1.0], "roc_auc": None}, "decisions": DECISIONS}
    write(paths.EXTERNAL_METRICS, json.dumps({"photographs": one_class}))
    return tmp_path


def test_one_row_per_test(workspace):
    rows = evidence.rows_of(workspace).set_index("test")
    assert list(rows.index) == ["test split", "test split, jpeg 50", "photographs"]
    assert rows.accuracy.tolist() == [0.75, 0.5, 1.0]
    assert rows.fakes_found["test split"] == 1 and rows.real_called_fake["test split"] == 0.5
    assert rows.fakes_found["test split, jpeg 50"] == 0.25 and rows.real_called_fake["test split, jpeg 50"] == 0.25
    assert rows.roc_auc_low[:2].tolist() == [0.8, 0.6] and pd.isna(rows.roc_auc["photographs"])
    assert set(rows.seed) == {20} and set(rows.settings) == {""}
    assert len(set(rows.commit)) == 1 and len(rows.commit.iloc[0]) == 12


def test_settings_that_differ_from_those_committed_are_named(workspace):
    params = (workspace / paths.PARAMS).read_text()
    (workspace / paths.PARAMS).write_text(
        params.replace("  epochs: 8\n", "  epochs: 9\n", 1).replace("\nseed: 20", "\nseed: 3")
    )
    rows = evidence.rows_of(workspace)
    assert set(rows.settings) == {"convnext.epochs=9"} and set(rows.seed) == {3}


def test_files_of_weights_are_named_without_their_folders(workspace):
    params = (workspace / paths.PARAMS).read_text().replace("weights: random", "weights: /home/me/w.pth")
    params = params.replace("architecture: null", "architecture: resnet18").replace(
        "weights: null", "weights: /home/me/t.pth"
    )
    (workspace / paths.PARAMS).write_text(params)
    changed = set(evidence.rows_of(workspace).settings[0].split("; "))
    assert changed == {
        "convnext.weights=w.pth", "convnext.teacher.architecture=resnet18", "convnext.teacher.weights=t.pth"
    }  # fmt: skip


def test_the_same_run_replaces_its_rows_and_others_stay(workspace, tmp_path):
    rows = evidence.rows_of(workspace)
    file = tmp_path / "results" / "x.csv"
    for accuracy, seed in ((0.1, 20), (0.2, 21), (0.3, 20)):
        evidence.record(file, rows.assign(accuracy=accuracy, seed=seed), "test")
    table = pd.read_csv(file)
    assert sorted(zip(table.seed, table.accuracy, strict=True)) == [(20, 0.3)] * 3 + [(21, 0.2)] * 3


def test_a_missing_result_is_named(workspace):
    (workspace / paths.ROBUSTNESS).unlink()
    with pytest.raises(UserError, match=r"plots/robustness\.csv is missing: run `dvc repro` to create it"):
        evidence.rows_of(workspace)


def test_results_of_an_earlier_experiment_are_not_recorded(tmp_path):
    def run(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "dvc.yaml").write_text("stages: {evaluate: {cmd: cp in out, deps: [in], outs: [out]}}\n")
    (tmp_path / "in").write_text("1")
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    with pytest.raises(UserError, match="of evaluate are out of date: run `dvc repro evaluate` first"):
        evidence.require_current(tmp_path, "evaluate")
    run("dvc", "repro", "--quiet")
    evidence.require_current(tmp_path, "evaluate")
    (tmp_path / "in").write_text("2")
    with pytest.raises(UserError, match="out of date"):
        evidence.require_current(tmp_path, "evaluate")
    with pytest.raises(UserError, match=r"`dvc status` failed .*nothing"):
        evidence.require_current(tmp_path, "nothing")
