"""`make table1` with a fake DVC: what it queues, waits for and prints. tests/end_to_end uses the real DVC."""

import sys

import pytest
from helpers import enter_root
from made_up import all_rows, other_architectures

from dfganext import paths
from dfganext.errors import UserError
from dfganext.tracking import experiments, lineage


class Queue:
    """A fake of the `dvc` command: records what is queued, and whether the queue was run."""

    def __init__(self) -> None:
        self.changes, self.ran = [], False

    def __call__(self, *words):
        if "--queue" in words:
            self.changes.append({word.split("=")[0]: word.split("=")[1] for word in words if "=" in word})
            assert words[:2] == ("exp", "run") and words[-1] == "evaluate" and not self.ran
        self.ran |= words == ("exp", "run", "--run-all")


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """Calls `main` with a queue and the records of each query to MLflow; returns the queue."""
    enter_root(tmp_path / "root", monkeypatch)
    paths.PARAMS.write_text((root / "params.yaml").read_text())

    def call(records, *arguments):
        queue, queries = Queue(), iter(records)
        monkeypatch.setattr(experiments, "_dvc", queue)
        monkeypatch.setattr(lineage, "evaluations", lambda split: next(queries))
        monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
        experiments.main()
        return queue

    return call


@pytest.fixture
def complete(shipped):
    return lambda seeds: [one for seed in range(20, 20 + seeds) for one in all_rows(shipped, seed=seed)]


def test_missing_experiments_are_queued_and_run(run, complete, capsys):
    queue = run([complete(1), complete(2)], "--seeds", "2")
    assert [(one["seed"], one["loss"]) for one in queue.changes] == [("21", "ce"), ("21", "bce")]
    assert queue.ran and "has all rows with 2 seeds" in capsys.readouterr().out


def test_nothing_is_missing(run, complete, capsys):
    queue = run([complete(1)])
    assert queue.changes == [] and not queue.ran
    assert "has all rows with 1 seeds" in capsys.readouterr().out


def test_missing_architectures_are_queued_and_run(run, shipped, complete, capsys):
    others = other_architectures(shipped)
    queue = run([complete(1) + others[1:], complete(1) + others], "--architectures")
    assert queue.changes == [{"seed": "20", "convnext.architecture": "resnet50"}]
    assert "The comparison of architectures has all rows with 1 seeds" in capsys.readouterr().out


def test_weights_of_one_architecture_fit_no_other(run):
    params = paths.PARAMS.read_text()
    paths.PARAMS.write_text(params.replace("weights: random", "weights: model.safetensors"))
    with pytest.raises(UserError, match=r"convnext\.weights: model\.safetensors holds the weights of one architecture"):
        run([[]], "--architectures")


@pytest.mark.parametrize("setting", ["weights", "teacher.weights"])
def test_a_file_of_weights_must_have_an_absolute_path(run, setting):
    params = paths.PARAMS.read_text()
    if setting == "weights":
        params = params.replace("weights: random", "weights: w.pth")
    else:
        params = params.replace("architecture: null", "architecture: resnet18").replace(
            "weights: null", "weights: w.pth"
        )
    paths.PARAMS.write_text(params)
    with pytest.raises(UserError, match=rf"^convnext\.{setting}: .* give the absolute path, /\S+/root/w\.pth\.$"):
        run([[]])


def test_missing_results_are_explained(run, complete):
    with pytest.raises(UserError, match=r"dvc queue logs.*restored results from its cache.*--force .*-S loss=ce"):
        run([[], []])


def test_seeds_must_be_positive(run, capsys):
    with pytest.raises(SystemExit):
        run([[]], "--seeds", "0")
    assert "at least 1" in capsys.readouterr().err
