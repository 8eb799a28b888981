"""Experiments as a user runs them: in the workspace, in a temporary workspace, from the queue, and `make table1`."""

import json
import re

import pandas as pd
import pytest
import yaml
from test_workflow import stages_in

from dfganext import paths

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiments(reproduced, tmp_path_factory):
    """A copy of `reproduced` in which experiments ran: `here`, `apart` (in a temporary workspace), `queued`, and with it those
    of Table I.

    They run only the stages that the tests look at.
    """
    project = reproduced.copy(tmp_path_factory.mktemp("experiments") / "df-ganext")
    project.run("dvc", "exp", "run", "--name", "here", "-S", "loss=bce", "evaluate")
    project.run("dvc", "exp", "run", "--temp", "--name", "apart", "-S", "loss=bce", "-S", "seed=3", "promote")

    # queued with one version of the code, started with another in the workspace
    source = "src/dfganext/evaluation/evaluate.py"
    code = project.change(source, '"temperature": temperature,', '"temperature": temperature, "queued": 1,')
    project.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "convnext.lr=0.002", "evaluate")
    project.write(source, code)
    params, stages = project.read("params.yaml"), project.lock_without_page()
    assert "has all rows with 1 seeds" in project.run("python", "-m", "dfganext.tracking.experiments")
    assert (project.read("params.yaml"), project.lock_without_page()) == (params, stages), (
        "the workspace stays as it was"
    )
    return project


def test_experiments_of_every_kind_share_one_store(experiments):
    assert json.loads(experiments.read(paths.CONVNEXT / "config.json"))["loss"] == "bce"
    lr = str(yaml.safe_load(experiments.read("params.yaml"))["convnext"]["lr"])
    expected = {
        "here": {"loss": "bce", "seed": "20", "convnext.lr": lr},
        "apart": {"loss": "bce", "seed": "3", "convnext.lr": lr},
        "queued": {"loss": "bce", "seed": "20", "convnext.lr": "0.002"},
        "table1": {"loss": "bce", "seed": "20", "convnext.lr": lr},
    }
    parents = [run for run in experiments.parents() if "dvc.experiment" in run.data.tags]
    assert sorted(run.data.tags["dvc.experiment"].partition("-")[0] for run in parents) == sorted(expected)
    for run in parents:
        name = run.data.tags["dvc.experiment"].partition("-")[0]
        assert expected[name].items() <= run.data.params.items(), name
        assert {"accuracy", "f1", "roc_auc"} <= set(run.data.metrics), name
        assert run.info.artifact_uri.removeprefix("file://").startswith(f"{experiments.folder}/mlruns"), name
    assert not list(experiments.folder.glob(".dvc/tmp/exps/**/mlflow.db"))


def test_the_table_of_experiments_has_settings_and_metrics(experiments):
    recipe = experiments.run("make", "--no-print-directory", "--dry-run", "experiments").splitlines()[-1]
    table = experiments.run("bash", "-c", f"COLUMNS=80 {recipe}")
    for text in ("here", "apart", "queued", "loss", "convnext.lr", "convnext.accuracy", "convnext.roc_auc"):
        assert text in table
    assert "autoencoder" not in table


def test_queued_experiment_runs_the_code_it_was_queued_with(experiments):
    refs = experiments.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (queued,) = (ref for ref in refs if ref.endswith("/queued"))
    assert json.loads(experiments.run("git", "show", f"{queued}:{paths.EVALUATE_METRICS}"))["convnext"]["queued"] == 1


def test_another_seed_keeps_the_split_and_is_compared_on_the_same_images(experiments):
    refs = experiments.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (apart,) = (ref for ref in refs if ref.endswith("/apart"))
    ours = yaml.safe_load(experiments.read("dvc.lock"))["stages"]
    theirs = yaml.safe_load(experiments.run("git", "show", f"{apart}:dvc.lock"))["stages"]
    assert theirs["subsample"] == ours["subsample"]
    assert theirs["train_convnext"]["outs"] != ours["train_convnext"]["outs"]
    assert set(experiments.versions()) == {1, 2}
    apart = experiments.versions()[2]
    assert (apart.tags["promotion.against"], apart.tags["promotion.images"]) == ("1", "10 real, 10 fake")


def test_table1_has_its_rows_once_and_the_page_shows_them(experiments):
    output = experiments.run("python", "-m", "dfganext.tracking.experiments")
    assert "has all rows with 1 seeds" in output and "table1-" not in output, "nothing is left to run"
    experiments.run("dvc", "repro", "--single-item", "--force", "report")
    page = experiments.read(paths.PAGE)
    table = page[page.index('id="table1"') : page.index('id="detector"')]
    assert "make table1" not in table and "McNemar p" in table
    assert len(re.findall(r"\b20</small>", table)) == 5, "each row has seed 20"
    experiments.run("python", "-m", "benchmarks.tables", "results/mine-tables.csv")
    recorded = pd.read_csv(experiments.folder / "results/mine-tables.csv", dtype={"seeds": str})
    accuracies = recorded[(recorded.table == "I") & (recorded.measure == "accuracy")]
    seeds = ["20" in one.split() for one in accuracies.seeds.fillna("")]
    assert seeds == [True] * 5 + [False], "the spectrum baseline has no seed"
    assert set(recorded.table) >= {"I", "II", "claims"}


def test_settings_that_ran_before_are_restored_from_the_cache(experiments, reproduced):
    output = experiments.run(
        "dvc", "exp", "run", "--name", "back", "-S", "loss=ce", "evaluate", "robustness", "external"
    )
    assert stages_in(output) == ["check"], "it compares the settings"
    for metrics in (paths.EVALUATE_METRICS, paths.ROBUSTNESS, paths.EXTERNAL_METRICS):
        assert experiments.read(metrics) == reproduced.read(metrics)
