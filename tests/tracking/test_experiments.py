"""`make table1` with a stand-in for DVC: what it queues, waits for and says. tests/end_to_end has the real one."""

import sys

import pytest
from helpers import enter_root
from made_up import all_rows

from dfganext import paths
from dfganext.errors import UserError
from dfganext.tracking import experiments, lineage


class Queue:
    """Answers as `dvc` would; experiments end after `polls` looks, those whose number is in `failing` badly."""

    def __init__(self, failing=()) -> None:
        self.names, self.changes, self.polls, self.failing = [], [], 0, failing

    def __call__(self, *words, check=True):
        if words[:2] == ("exp", "run"):
            self.names.append(words[words.index("--name") + 1])
            self.changes.append({word.split("=")[0]: word.split("=")[1] for word in words if "=" in word})
            assert words[-1] == "evaluate" and "--queue" in words
        if words == ("queue", "status"):
            self.polls += 1
            state = ["Queued", "Running", "Success"][min(self.polls - 1, 2)]
            states = ["Failed" if state == "Success" and n in self.failing else state for n in range(len(self.names))]
            rows = [f"abc{n}  {name}  10:1{n} PM  {states[n]}" for n, name in enumerate(self.names)]
            return "\n".join(["Task     Name    Created    Status", *rows, "Worker status: 1 active, 0 idle"])
        return "it broke" if words[:2] == ("queue", "logs") else ""


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """Calls `main` with a queue and the records of each look at MLflow; returns the queue."""
    enter_root(tmp_path / "root", monkeypatch)
    paths.PARAMS.write_text((root / "params.yaml").read_text())
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0)

    def call(records, *arguments, failing=()):
        queue, looks = Queue(failing), iter(records)
        monkeypatch.setattr(experiments, "_dvc", queue)
        monkeypatch.setattr(lineage, "evaluations", lambda split: next(looks))
        monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
        experiments.main()
        return queue

    return call


@pytest.fixture
def complete(shipped):
    return lambda seeds: [one for seed in range(20, 20 + seeds) for one in all_rows(shipped, seed=seed)]


def test_what_lacks_is_queued_and_waited_for(run, complete, capsys):
    queue = run([complete(1), complete(2)], "--seeds", "2")
    assert [(one["seed"], one["loss"]) for one in queue.changes] == [("21", "ce"), ("21", "bce")]
    assert queue.polls == 3 and "0 to go" in capsys.readouterr().out


def test_nothing_lacks(run, complete, capsys):
    assert run([complete(1)]).names == []
    assert "has all rows with 1 seeds" in capsys.readouterr().out


def test_a_failed_experiment_is_named_with_its_log(run, complete):
    with pytest.raises(UserError, match=r"table1-bce-seed20-\w+ failed; .*it broke"):
        run([[]], failing=(1,))


def test_results_that_mlflow_never_saw_are_explained(run, complete):
    with pytest.raises(UserError, match=r"restored results from its cache.*--force.* -S loss=ce"):
        run([[], []])


def test_seeds_must_be_counted(run, capsys):
    with pytest.raises(SystemExit):
        run([[]], "--seeds", "0")
    assert "at least 1" in capsys.readouterr().err
