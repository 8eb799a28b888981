"""The workflow as a user runs it: real commands, in clones of this repository."""

import csv
import hashlib
import json
import re
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from dfganext import paths
from dfganext.models import classifier
from dfganext.report.text import SAMPLE_WARNING

pytestmark = pytest.mark.slow
STAGES = [
    "check",
    "download",
    "subsample",
    "audit",
    "resize",
    "train_convnext",
    "train_autoencoder",
    "evaluate",
    "baseline",
    "robustness",
    "external",
    "gradcam",
    "density",
    "report",
    "promote",
]


def stages_in(output: str) -> list[str]:
    """The stages that `dvc repro` ran, or with --dry would run."""
    return re.findall(r"Running stage '(\w+)'", output)


def changed_stages(status: str) -> set[str]:
    """The stages that `dvc status` lists as changed."""
    return set(re.findall(r"^(\w+):", status, flags=re.MULTILINE))


def test_fresh_clone_reproduces(reproduced):
    assert sorted(stages_in(reproduced.output)) == sorted(STAGES)
    assert reproduced.output.index("Running stage 'audit'") < reproduced.output.index("Running stage 'train_convnext'")
    changed = {line[3:].split("/")[0] for line in reproduced.changed}
    assert changed <= {"dvc.lock", "metrics", "plots"}, reproduced.changed
    scores = json.loads(reproduced.read(paths.EVALUATE_METRICS))
    assert {"accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer"} <= set(scores["convnext"])
    assert {"accuracy", "roc_auc", "threshold"} <= set(scores["autoencoder"])
    density = json.loads(reproduced.read(paths.DENSITY_METRICS))
    for protocol in ("paper", "heldout"):
        for label in ("real", "fake"):
            assert set(density[protocol][label]) == {"mean", "std"}
    assert {"temperature", "threshold"} <= set(json.loads(reproduced.read(paths.OPERATING_POINT)))
    page = reproduced.read(paths.PAGE)
    assert "These images are drawn" in page and page.count("data:image/png;base64,") == 12
    for figure in (paths.GRADCAM_REAL_FIGURE, paths.GRADCAM_FAKE_FIGURE, paths.EVALUATION_FIGURE, paths.DENSITY_FIGURE):
        assert Image.open(reproduced.folder / figure).width > 500


def test_stage_runs_have_one_parent_with_parameters_and_key_metrics(reproduced):
    parent = reproduced.parents()[-1]  # other tests add executions
    below = reproduced.runs(**{"mlflow.parentRunId": parent.info.run_id})
    stages = {run.data.tags["stage"]: run for run in below}
    assert set(stages) == set(STAGES) - {"check"} and len(stages) == len(below)
    assert {run.info.status for run in (parent, *stages.values())} == {"FINISHED"}
    assert parent.data.params["loss"] == "ce" and parent.data.params["convnext.architecture"] == "test_convnext"
    scores = json.loads(reproduced.read(paths.EVALUATE_METRICS))
    for name in ("accuracy", "f1", "roc_auc"):
        assert parent.data.metrics[name] == pytest.approx(scores["convnext"][name])
    training = stages["train_convnext"].info.run_id
    for name in ("train_loss", "validation_accuracy", "validation_precision", "train_f1", "lr", "images_per_second"):
        assert len(reproduced.client().get_metric_history(training, name)) == 2, name
    tags = stages["evaluate"].data.tags
    assert tags["made_by.artifacts/models/convnext"] == training
    assert tags["mlflow.source.git.commit"] == reproduced.run("git", "rev-parse", "HEAD~1").strip()


def test_the_champion_describes_itself(reproduced):
    description = reproduced.versions()[1].description
    accuracy = json.loads(reproduced.read(paths.EVALUATE_METRICS))["convnext"]["accuracy"]
    assert description.startswith("# DF-GANeXt 1: test_convnext")
    for text in (f"| accuracy | {accuracy:.3f} |", "| re-saved |", "there was no champion", "embedded sample"):
        assert text.lower() in description.lower()


def test_repro_with_nothing_to_do_takes_seconds(reproduced):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "up to date" in reproduced.run("dvc", "repro")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of the processor, which other tests may use meanwhile
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert "up to date" in reproduced.run("dvc", "status")


def test_deleted_page_and_candidate_are_made_again(reproduced):
    """The promotion of the same weights adds no version."""
    page, candidate = reproduced.read(paths.PAGE), reproduced.read(paths.CANDIDATE)
    for path in (paths.PAGE, paths.CANDIDATE):
        (reproduced.folder / path).unlink()
    assert sorted(stages_in(reproduced.run("dvc", "repro"))) == ["promote", "report"]
    assert (reproduced.read(paths.PAGE), reproduced.read(paths.CANDIDATE)) == (page, candidate)
    assert len(reproduced.versions()) == 1
    assert "up to date" in reproduced.run("dvc", "repro")


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        (
            "src/dfganext/training/compute.py",
            {"train_convnext", "evaluate", "robustness", "gradcam", "density", "promote"},
        ),
        ("src/dfganext/inference/batching.py", {"promote"}),
        ("src/dfganext/report/figures.py", {"evaluate", "gradcam", "density", "report"}),
    ],
)
def test_changed_code_runs_the_stages_that_use_it(reproduced, file, stages):
    code = reproduced.read(file)
    reproduced.write(file, f"{code}# changed\n")
    try:
        would_run = set(stages_in(reproduced.run("dvc", "repro", "--dry")))
        assert stages <= would_run and "download" not in would_run
    finally:
        reproduced.write(file, code)


def test_new_library_version_runs_the_stages_that_use_it(reproduced):
    """`check` writes the installed versions to a file, with which the stages compare."""
    recorded = json.loads(reproduced.read(paths.VERSIONS))
    expected = {
        "pytest": (set(), set(STAGES) - {"check"}),
        "albumentations": ({"train_convnext", "report"}, {"resize", "evaluate", "promote"}),
        "scikit-learn": ({"baseline", "evaluate"}, {"resize", "train_autoencoder", "download"}),
    }
    assert {"albumentations", "scikit-learn"} <= set(recorded) and "pytest" not in recorded
    for library, (changed, unchanged) in expected.items():
        reproduced.write(paths.VERSIONS, json.dumps(recorded | {library: "9.9"}, indent=2) + "\n")
        listed = changed_stages(reproduced.run("dvc", "status"))
        assert changed <= listed and not unchanged & listed, library
    assert "scikit-learn 9.9, but" in reproduced.run("python", "-m", "stages.resize", fails=True)
    reproduced.run("dvc", "repro")
    assert json.loads(reproduced.read(paths.VERSIONS)) == recorded
    lock = reproduced.read("requirements.lock")
    reproduced.write("requirements.lock", f"{lock}# another version of pytest\n")
    try:
        assert stages_in(reproduced.run("dvc", "repro", "--dry")) == ["check"]
    finally:
        reproduced.write("requirements.lock", lock)
    assert "up to date" in reproduced.run("dvc", "repro")


def test_plots_are_shown(reproduced):
    reproduced.run("dvc", "plots", "show", "--out", "shown")
    page = reproduced.read("shown/index.html")
    shutil.rmtree(reproduced.folder / "shown")
    for title in ("Loss, ConvNeXt", "Speed, ConvNeXt", "ROC", "Confusion", "Other labelled sets", "gradcam_fake.png"):
        assert title in page


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loss: ce", "loss: foo", "loss: Input should be 'ce' or 'bce', not \"foo\""),
        ("loss: ce", "loss: ce\nlosss: ce", "losss: unknown key"),
        (
            "  bandwidth: 0.2",
            "  bandwidth: wide",
            'density.bandwidth: Input should be a valid number, not "wide"',
        ),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(reproduced, old, new, message):
    metrics = reproduced.read(paths.EVALUATE_METRICS)
    params = reproduced.change("params.yaml", old, new)
    try:
        output = reproduced.run("dvc", "repro", fails=True)
        assert message in output and "Traceback" not in output
        assert "train_convnext" not in output and reproduced.read(paths.EVALUATE_METRICS) == metrics
    finally:
        reproduced.write("params.yaml", params)


def test_experiment_with_a_wrong_value_is_refused(reproduced):
    output = reproduced.run("dvc", "exp", "run", "--temp", "-S", "loss=foo", fails=True)
    assert "loss: Input should be 'ce' or 'bce', not \"foo\"" in output


def test_clone_pulls_from_a_remote_and_runs_only_what_acts_outside_dvc(reproduced, tmp_path):
    project = reproduced.copy(tmp_path / "one")
    project.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    project.commit("A remote")
    project.run("dvc", "push")
    other = project.clone(tmp_path / "other")
    other.run("dvc", "pull")
    assert sorted(stages_in(other.run("dvc", "repro"))) == ["check", "promote", "report"]
    assert "up to date" in other.run("dvc", "repro")
    assert (other.folder / paths.PAGE).is_file()
    # the page shows the evaluations in the clone's own MLflow store, which has none
    assert other.run("git", "status", "--porcelain").split() == ["M", "dvc.lock"]
    assert other.lock_without_page() == project.lock_without_page()


def test_a_clone_without_the_cache_makes_the_same_bytes(reproduced, tmp_path):
    """With another number of workers, and killed in between. It trains a champion of its own, which predicts what `evaluate`
    measured."""
    project = reproduced.clone(tmp_path / "other")
    params = project.change("params.yaml", "  workers: 2", "  workers: 0")
    tracked = {"audit", "robustness"}  # their only outputs are in git
    for seconds in (14, 8):  # in the second of the two, a stage runs that the first has begun
        assert project.killed_after(seconds, "dvc", "repro")
    project.run("dvc", "repro")
    runs = [run for run in project.runs() if "stage" in run.data.tags]
    assert {run.data.tags["stage"] for run in runs if run.info.status == "FINISHED"} == set(STAGES) - tracked - {
        "check"
    }
    assert [run.info.run_name for run in project.runs() if run.info.status == "RUNNING"] == []
    assert list(project.versions()) == [1]
    assert set(stages_in(project.run("dvc", "repro", "--force", "--single-item", *sorted(tracked)))) == tracked
    project.write("params.yaml", params)
    assert stages_in(project.run("dvc", "repro")) == ["check"], "`machine` is no stage's dependency"
    assert project.run("git", "status", "--porcelain") == "", "dvc.lock has the hashes that were committed"
    assert (project.folder / paths.PAGE).is_file()

    with (project.folder / paths.PREDICTIONS).open() as stream:
        evaluated = {row["path"]: row for row in csv.DictReader(stream)}
    said = project.run("dfganext", "predict", "--json", *(str(paths.RAW / path) for path in evaluated))
    warning, _, rows = said.partition("[")
    assert SAMPLE_WARNING in warning
    rows = json.loads(f"[{rows}")
    assert len(rows) == len(evaluated) == 20 and {row["label"] for row in rows} == {"real", "fake"}
    for row in rows:
        expected = evaluated[row["path"].removeprefix(f"{paths.RAW.as_posix()}/")]
        assert row["p_fake"] == pytest.approx(float(expected["p_fake"]), abs=1e-5)
        assert (row["label"], row["decision"]) == (expected["predicted"], expected["decision"])


def test_a_lock_file_that_was_cut_off_comes_back_from_git(reproduced):
    whole = reproduced.read("dvc.lock")
    assert not reproduced.lock_is_damaged()
    try:
        reproduced.write("dvc.lock", whole[: whole.index("  robustness:")])
        assert reproduced.lock_is_damaged()
        restored = reproduced.run("dvc", "repro", "robustness")
        assert stages_in(restored) == [] and "Stage 'robustness' is cached" in restored
        reproduced.write("dvc.lock", whole[: whole.rindex("path:")])
        assert reproduced.lock_is_damaged()
        said = reproduced.run("dvc", "repro", fails=True)
        assert "dvc.lock' validation failed" in said or "dvc.lock' is invalid" in said
        reproduced.restore_lock()
        assert reproduced.read("dvc.lock") == whole
    finally:
        reproduced.write("dvc.lock", whole)
    reproduced.run("dvc", "status")


def test_own_images(origin, tmp_path):
    project = origin.clone(tmp_path / "own")
    rng = np.random.default_rng(0)
    for label in ("real", "fake"):
        folder = project.folder / "data" / "photos" / label
        folder.mkdir(parents=True)
        for number in range(30):
            picture = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            picture.save(folder / f"{number}.jpg", quality={"real": 90, "fake": 50}[label])
    project.write("data/notes.txt", "not an image")
    project.run("dvc", "add", "data")
    refused = project.run("python", "-m", "stages.check", fails=True)
    assert "dvc remove data.dvc" in refused, "DVC would import the sample over these images"
    project.run("dvc", "remove", "data.dvc")
    project.run("dvc", "add", "data")
    output = project.run("dvc", "repro", "subsample", fails=True)
    assert "60 images of each class were asked for, but there are 30 real and 30 fake" in output
    project.change("params.yaml", "per_class: 60", "per_class: 30")
    project.change("params.yaml", "reencode: false", "reencode: true")
    output = project.run("dvc", "repro", "audit")
    assert "WARNING" in output and "quantisation" in output and "resize.reencode" in output
    assert "bytes_reencoded" in json.loads(project.read(paths.AUDIT_METRICS))["groups"]
    with (project.folder / paths.SPLIT).open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 60 and all(row["path"].split("/")[1] == "photos" for row in rows)
    assert "notes.txt" in project.read(paths.REJECTS)
    assert "import" not in project.read("data.dvc") and "samples" not in project.read("data.dvc")


def test_training_in_two_processes_is_one_run_with_the_same_curves(reproduced, tmp_path):
    project = reproduced.copy(tmp_path / "df-ganext")
    project.change("params.yaml", "  processes: 1 ", "  processes: 2 ")
    project.run("dvc", "repro", "train_convnext")
    two, one = project.runs(stage="train_convnext")
    assert (one.data.tags["processes"], two.data.tags["processes"]) == ("1", "2")
    assert two.info.status == "FINISHED" and f"made.{paths.CONVNEXT.as_posix()}" in two.data.tags
    curves = [
        pd.read_csv(folder / paths.CONVNEXT_CURVES)[["train_loss", "validation_loss"]]
        for folder in (reproduced.folder, project.folder)
    ]
    # bfloat16 rounds by more than training/test_distributed.py allows float32
    np.testing.assert_allclose(*curves, rtol=0.01)


def test_another_weights_file_of_the_same_name_trains_again(reproduced, tmp_path):
    project = reproduced.copy(tmp_path / "df-ganext")
    weights = tmp_path / "weights.pth"
    project.change("params.yaml", "  weights: random", f"  weights: {weights}")
    curves = []
    for seed in (1, 2):
        torch.save(classifier.build("test_convnext", "ce", 32, seed=seed)[0].state_dict(), weights)
        assert "train_convnext" in stages_in(project.run("dvc", "repro", "train_convnext"))
        curves.append(project.read(paths.CONVNEXT_CURVES))
        assert "up to date" in project.run("dvc", "repro", "train_convnext")
    assert curves[0] != curves[1]
    lock = yaml.safe_load(project.read("dvc.lock"))["stages"]["train_convnext"]
    assert not [one["path"] for one in lock["deps"] if one["path"].startswith("/")]
    latest = project.runs(stage="train_convnext")[0]
    assert latest.data.tags["read.artifacts/weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
