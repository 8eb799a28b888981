"""`make table1` with a fake DVC: what it queues, waits for and prints. tests/end_to_end uses the real DVC."""

import sys

import pytest
from helpers import enter_root
from made_up import all_rows

from dfganext import paths
from dfganext.errors import UserError
from dfganext.tracking import experiments, lineage


class Queue:
    """A fake of the `dvc` command and its queue: experiments end at the third poll; the indices in `failing` fail."""

    def __init__(self, failing=()) -> None:
        self.names, self.changes, self.polls, self.failing = [], [], 0, failing

    def __call__(self, *words, check=True):
        if words[:2] == ("exp", "run"):
            self.names.append(words[words.index("--name") + 1])
            self.changes.append({word.split("=")[0]: word.split("=")[1] for word in words if "=" in word})
            assert words[-1] == "evaluate" and "--queue" in words
        return "it broke" if words[:2] == ("queue", "logs") else ""

    def states(self):
        self.polls += 1
        if self.polls == 2:
            return {}  # while a task starts, DVC lists it neither as queued nor as running
        state = ["Queued", "", "Running", "Success"][min(self.polls - 1, 3)]
        return {
            name: "Failed" if state == "Success" and index in self.failing else state
            for index, name in enumerate(self.names)
        }


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """Calls `main` with a queue and the records of each query to MLflow; returns the queue."""
    enter_root(tmp_path / "root", monkeypatch)
    paths.PARAMS.write_text((root / "params.yaml").read_text())
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0)

    def call(records, *arguments, failing=()):
        queue, queries = Queue(failing), iter(records)
        monkeypatch.setattr(experiments, "_dvc", queue)
        monkeypatch.setattr(experiments, "_states", queue.states)
        monkeypatch.setattr(lineage, "evaluations", lambda split: next(queries))
        monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
        experiments.main()
        return queue

    return call


@pytest.fixture
def complete(shipped):
    return lambda seeds: [one for seed in range(20, 20 + seeds) for one in all_rows(shipped, seed=seed)]


def test_missing_experiments_are_queued_and_waited_for(run, complete, capsys):
    queue = run([complete(1), complete(2)], "--seeds", "2")
    assert [(one["seed"], one["loss"]) for one in queue.changes] == [("21", "ce"), ("21", "bce")]
    assert queue.polls == 4 and "0 left" in capsys.readouterr().out


def test_nothing_is_missing(run, complete, capsys):
    assert run([complete(1)]).names == []
    assert "has all rows with 1 seeds" in capsys.readouterr().out


def test_a_failed_experiment_is_named_with_its_log(run, complete):
    with pytest.raises(UserError, match=r"table1-bce-seed20-\w+ failed; .*it broke"):
        run([[]], failing=(1,))


def test_results_missing_from_mlflow_are_explained(run, complete):
    with pytest.raises(UserError, match=r"restored results from its cache.*--force.* -S loss=ce"):
        run([[], []])


def test_seeds_must_be_positive(run, capsys):
    with pytest.raises(SystemExit):
        run([[]], "--seeds", "0")
    assert "at least 1" in capsys.readouterr().err
