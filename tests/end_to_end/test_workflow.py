"""The workflow as a user runs it: real commands, in clones of this repository."""

import csv
import json
import re
import shutil
import time

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from dfganext import paths

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
    "gradcam",
    "density",
    "report",
    "promote",
]


def runs(project, **tags):
    """Runs in a project's store, newest first, by their tags."""
    client = mlflow.MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("df-ganext")
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return client.search_runs([experiment.experiment_id], wanted)


def parents(project):
    return [run for run in runs(project) if "mlflow.parentRunId" not in run.data.tags]


def test_a_fresh_clone_reproduces(reproduced):
    for stage in STAGES:
        assert f"Running stage '{stage}'" in reproduced.output
    changed = reproduced.run("git", "status", "--porcelain").splitlines()
    assert {line[3:].split("/")[0] for line in changed} <= {"dvc.lock", "metrics", "plots"}, changed
    assert reproduced.output.index("Running stage 'audit'") < reproduced.output.index("Running stage 'train_convnext'")
    scores = json.loads(reproduced.read("metrics/evaluate.json"))
    assert {"accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer"} <= set(scores["convnext"])
    assert {"accuracy", "roc_auc", "threshold"} <= set(scores["autoencoder"])
    density = json.loads(reproduced.read("metrics/density.json"))
    for protocol in ("paper", "heldout"):
        for label in ("real", "fake"):
            assert set(density[protocol][label]) == {"mean", "std"}
    assert {"temperature", "threshold"} <= set(json.loads(reproduced.read(str(paths.OPERATING_POINT))))
    page = reproduced.read(str(paths.PAGE))
    assert "These images are drawn" in page and page.count("data:image/png;base64,") == 12
    for figure in (paths.GRADCAM_REAL_FIGURE, paths.GRADCAM_FAKE_FIGURE, paths.EVALUATION_FIGURE, paths.DENSITY_FIGURE):
        assert Image.open(reproduced.folder / figure).width > 500


def test_with_nothing_to_do_it_says_so_quickly(reproduced):
    start = time.perf_counter()
    assert "up to date" in reproduced.run("dvc", "repro")
    assert time.perf_counter() - start < 10
    assert "up to date" in reproduced.run("dvc", "status")


def test_stages_hang_under_one_parent_with_parameters_and_metrics(reproduced):
    first = parents(reproduced)[-1]
    below = runs(reproduced, **{"mlflow.parentRunId": first.info.run_id})
    assert sorted(run.data.tags["stage"] for run in below) == sorted(set(STAGES) - {"check"})
    assert {run.info.status for run in [first, *below]} == {"FINISHED"}
    assert first.data.params["loss"] == "ce" and first.data.params["convnext.architecture"] == "test_convnext"
    scores = json.loads(reproduced.read("metrics/evaluate.json"))
    for name in ("accuracy", "f1", "roc_auc"):
        assert first.data.metrics[name] == pytest.approx(scores["convnext"][name])
    (training,) = (run for run in below if run.data.tags["stage"] == "train_convnext")
    client = mlflow.MlflowClient(f"sqlite:///{reproduced.folder}/mlflow.db")
    for name in ("train_loss", "validation_accuracy", "validation_precision", "train_f1", "lr", "images_per_second"):
        assert len(client.get_metric_history(training.info.run_id, name)) == 2, name
    (evaluation,) = (run for run in below if run.data.tags["stage"] == "evaluate")
    assert evaluation.data.tags["made_by.artifacts/models/convnext"] == training.info.run_id
    assert evaluation.data.tags["mlflow.source.git.commit"] == reproduced.run("git", "rev-parse", "HEAD").strip()


def test_plots_show(reproduced):
    reproduced.run("dvc", "plots", "show", "--out", "shown")
    page = reproduced.read("shown/index.html")
    shutil.rmtree(reproduced.folder / "shown")
    for title in ("Loss, ConvNeXt", "Speed, ConvNeXt", "ROC", "Confusion", "gradcam_fake.png"):
        assert title in page


def test_the_champion_says_what_evaluate_measured(reproduced):
    with (reproduced.folder / paths.PREDICTIONS).open() as stream:
        measured = {row["path"]: row for row in csv.DictReader(stream)}
    files = [str(paths.RAW / path) for path in measured]
    answer = json.loads(reproduced.run("dfganext", "predict", "--json", *files))
    assert len(answer) == len(measured) == 20
    for row in answer:
        expected = measured[row["path"].removeprefix(f"{paths.RAW.as_posix()}/")]
        assert row["p_fake"] == pytest.approx(float(expected["p_fake"]), abs=1e-5)
        assert row["label"] == expected["predicted"]


def test_forced_again_with_other_workers_every_output_has_the_same_bytes(reproduced):
    params, lock = reproduced.read("params.yaml"), reproduced.read("dvc.lock")
    assert yaml.safe_load(params)["machine"]["workers"] != 0
    reproduced.write("params.yaml", params.replace("  workers: 2", "  workers: 0"))
    try:
        reproduced.run("dvc", "repro", "--force")
        outputs = {name: stage.get("outs") for name, stage in yaml.safe_load(lock)["stages"].items()}
        again = yaml.safe_load(reproduced.read("dvc.lock"))["stages"]
        assert {name: stage.get("outs") for name, stage in again.items()} == outputs
    finally:
        reproduced.write("params.yaml", params)
        reproduced.run("dvc", "repro")
    assert reproduced.read("dvc.lock") == lock
    registered = mlflow.MlflowClient(f"sqlite:///{reproduced.folder}/mlflow.db").search_model_versions(
        "name='df-ganext'"
    )
    assert len(registered) == 1, "the same weights are the same version"


def test_experiments_of_every_kind_land_in_one_store(reproduced):
    reproduced.run("git", "add", "--all")
    reproduced.run("git", "commit", "--quiet", "--message", "Results")
    before = {run.info.run_id for run in parents(reproduced)}
    reproduced.run("dvc", "exp", "run", "--name", "here", "-S", "loss=bce")
    assert json.loads(reproduced.read(f"{paths.CONVNEXT}/config.json"))["loss"] == "bce"
    reproduced.run("dvc", "exp", "run", "--temp", "--name", "apart", "-S", "loss=bce", "-S", "seed=3")

    # queued with one version of the code, started with another in the workspace
    source = "src/dfganext/evaluation/evaluate.py"
    code = reproduced.read(source)
    reproduced.write(source, code.replace('"temperature": temperature,', '"temperature": temperature, "queued": 1,', 1))
    reproduced.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "loss=bce", "-S", "seed=4")
    reproduced.write(source, code)
    reproduced.run("dvc", "queue", "start")
    deadline = time.monotonic() + 300
    while "Success" not in (status := reproduced.run("dvc", "queue", "status")):
        assert "Failed" not in status and time.monotonic() < deadline, status + reproduced.run(
            "dvc", "queue", "logs", "queued"
        )
        time.sleep(2)
    refs = reproduced.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (queued,) = (ref for ref in refs if ref.endswith("/queued"))
    assert json.loads(reproduced.run("git", "show", f"{queued}:metrics/evaluate.json"))["convnext"]["queued"] == 1

    new = {run.data.tags.get("dvc.experiment"): run for run in parents(reproduced) if run.info.run_id not in before}
    assert set(new) == {"here", "apart", "queued"}
    for name, run in new.items():
        assert run.data.params["loss"] == "bce" and {"accuracy", "f1", "roc_auc"} <= set(run.data.metrics), name
        assert run.info.artifact_uri.startswith((f"{reproduced.folder}/mlruns", f"file://{reproduced.folder}/mlruns"))
    assert not list(reproduced.folder.glob(".dvc/tmp/exps/**/mlflow.db"))


def test_table_1_is_run_and_collected(reproduced):
    text = {"params.yaml": reproduced.read("params.yaml"), "dvc.lock": reproduced.read("dvc.lock")}
    reproduced.run("python", "-m", "dfganext.experiments")
    assert "has all rows with 1 seeds" in reproduced.run("python", "-m", "dfganext.experiments")
    reproduced.run("dvc", "repro", "--single-item", "--force", "report")
    page = reproduced.read(str(paths.PAGE))
    table = page[page.index('id="table1"') : page.index('id="detector"')]
    assert "make table1" not in table and table.count("<small>20</small>") == 5 and "McNemar p" in table
    assert text == {name: reproduced.read(name) for name in text}, "the workspace is as it was"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("loss: ce", "loss: foo"), "loss must be one of ce, bce, not 'foo'"),
        (("loss: ce", "loss: ce\nlosss: ce"), "unknown key losss"),
        (
            ("  bandwidth: 0.2", "  bandwidth: wide"),
            "density.bandwidth must be a number from 1e-06 to 1000000, not 'wide'",
        ),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(reproduced, change, says):
    params = reproduced.read("params.yaml").replace("loss: bce", "loss: ce")
    kept = reproduced.read("metrics/evaluate.json")
    reproduced.write("params.yaml", params.replace(*change))
    try:
        output = reproduced.run("dvc", "repro", fails=True)
        assert says in output and "Traceback" not in output
        assert "train_convnext" not in output and reproduced.read("metrics/evaluate.json") == kept
    finally:
        reproduced.write("params.yaml", params)


def test_experiment_with_a_wrong_value_is_refused(reproduced):
    output = reproduced.run("dvc", "exp", "run", "--temp", "-S", "loss=foo", fails=True)
    assert "loss must be one of ce, bce, not 'foo'" in output


def test_with_a_remote_a_clone_pulls_and_has_nothing_to_do(reproduced, tmp_path):
    reproduced.run("git", "reset", "--quiet", "--hard")
    reproduced.run("dvc", "checkout", "--quiet")
    reproduced.run("dvc", "remote", "add", "--force", "--default", "storage", str(tmp_path / "storage"))
    reproduced.commit("A remote")
    reproduced.run("dvc", "push")
    other = reproduced.clone(tmp_path / "other")
    other.run("dvc", "pull")
    assert "up to date" in other.run("dvc", "repro")
    assert other.run("git", "status", "--porcelain") == ""


def test_a_clone_with_committed_results_gets_a_champion_and_a_page_too(reproduced, tmp_path):
    """Without DVC's cache everything is made again, and what acts outside DVC is not taken for done."""
    reproduced.run("git", "reset", "--quiet", "--hard")
    other = reproduced.clone(tmp_path / "other")
    other.run("dvc", "repro")
    assert other.run("git", "status", "--porcelain") == "", "the same bytes as committed"
    assert (other.folder / paths.PAGE).is_file()
    image = next((other.folder / "samples" / "fake").iterdir())
    assert "fake" in other.run("dfganext", "predict", str(image))


def test_ones_own_images(origin, tmp_path):
    project = origin.clone(tmp_path / "own")
    rng = np.random.default_rng(0)
    for label in ("real", "fake"):
        folder = project.folder / "data" / "photos" / label
        folder.mkdir(parents=True)
        for number in range(30):
            picture = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            picture.save(folder / f"{number}.jpg", quality={"real": 90, "fake": 50}[label])
    (project.folder / "data" / "notes.txt").write_text("not an image")
    project.run("dvc", "add", "data")
    refused = project.run("python", "-m", "stages.check", fails=True)
    assert "dvc remove data.dvc" in refused, "DVC would import the sample over these images"
    project.run("dvc", "remove", "data.dvc")
    project.run("dvc", "add", "data")
    params = project.read("params.yaml")
    output = project.run("dvc", "repro", "subsample", fails=True)
    assert "60 images of each class were asked for, but there are 30 real and 30 fake" in output
    params = params.replace("per_class: 60", "per_class: 30").replace("equalise: false", "equalise: true")
    project.write("params.yaml", params)
    output = project.run("dvc", "repro", "audit")
    assert "WARNING" in output and "quantisation" in output and "resize.equalise" in output
    assert "bytes_equalised" in json.loads(project.read("metrics/audit.json"))["groups"]
    with (project.folder / paths.SPLIT).open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 60 and all(row["path"].split("/")[1] == "photos" for row in rows)
    assert "notes.txt" in project.read(str(paths.REJECTS))
    assert "import" not in project.read("data.dvc") and "samples" not in project.read("data.dvc")


def test_training_in_two_processes_is_one_run_with_the_same_curves(origin, tmp_path):
    project = origin.clone(tmp_path / "df-ganext")
    curves = []
    for processes in (1, 2):
        project.write(
            "params.yaml", re.sub("  processes: . ", f"  processes: {processes} ", origin.read("params.yaml"))
        )
        project.run("dvc", "repro", "train_convnext")
        (run,) = runs(project, stage="train_convnext", processes=processes)
        assert run.info.status == "FINISHED" and f"made.{paths.CONVNEXT.as_posix()}" in run.data.tags
        curves.append(pd.read_csv(project.folder / paths.CONVNEXT_CURVES)[["train_loss", "validation_loss"]])
    assert len(runs(project, stage="train_convnext")) == 2
    # where the processor has bfloat16, rounding differs by more than training/test_distributed.py allows float32
    np.testing.assert_allclose(*curves, rtol=0.01)
