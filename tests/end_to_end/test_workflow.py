"""The workflow as a user runs it: real commands, in clones of this repository."""

import csv
import hashlib
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
    assert time.perf_counter() - start < 5
    assert "up to date" in reproduced.run("dvc", "status")


def test_a_page_that_was_deleted_comes_back(reproduced):
    page = reproduced.read(str(paths.PAGE))
    (reproduced.folder / paths.PAGE).unlink()
    output = reproduced.run("dvc", "repro")
    assert re.findall(r"Running stage '(\w+)'", output) == ["report"]
    assert reproduced.read(str(paths.PAGE)) == page
    assert "up to date" in reproduced.run("dvc", "repro")


def would_run(project) -> set[str]:
    return set(re.findall(r"Running stage '(\w+)'", project.run("dvc", "repro", "--dry")))


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
def test_a_change_of_code_runs_what_it_affects(reproduced, file, stages):
    code = reproduced.read(file)
    reproduced.write(file, f"{code}# changed\n")
    try:
        assert stages <= would_run(reproduced)
        assert "download" not in would_run(reproduced)
    finally:
        reproduced.write(file, code)


def test_a_new_version_of_a_library_runs_what_uses_it(reproduced):
    """The stages compare the versions that `check` wrote; what it writes is what is installed."""
    recorded = json.loads(reproduced.read(str(paths.VERSIONS)))
    expected = {
        "albumentations": ({"train_convnext", "report"}, {"resize", "evaluate", "promote"}),
        "scikit-learn": ({"baseline", "evaluate"}, {"resize", "train_autoencoder", "download"}),
        "pytest": (set(), set(STAGES)),
    }
    lock = reproduced.read("requirements.lock")
    for library, (runs_again, stays) in expected.items():
        changed = recorded | {library: "9.9"}
        reproduced.write(str(paths.VERSIONS), json.dumps(changed, indent=2) + "\n")
        status = reproduced.run("dvc", "status")
        if library in recorded:
            assert runs_again <= set(re.findall(r"^(\w+):", status, flags=re.MULTILINE))
        assert not (stays - {"check"}) & set(re.findall(r"^(\w+):", status, flags=re.MULTILINE))
    refused = reproduced.run("python", "-m", "stages.resize", fails=True) if recorded != changed else ""
    assert "pytest 9.9, but None is installed" in refused
    reproduced.run("dvc", "repro")
    assert json.loads(reproduced.read(str(paths.VERSIONS))) == recorded
    reproduced.write("requirements.lock", f"{lock}# another version of pytest\n")
    assert would_run(reproduced) == {"check"}
    reproduced.write("requirements.lock", lock)
    assert "up to date" in reproduced.run("dvc", "repro")


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
    text = {"params.yaml": reproduced.read("params.yaml"), "dvc.lock": without_page(reproduced.read("dvc.lock"))}
    reproduced.run("python", "-m", "dfganext.tracking.experiments")
    assert "has all rows with 1 seeds" in reproduced.run("python", "-m", "dfganext.tracking.experiments")
    reproduced.run("dvc", "repro", "--single-item", "--force", "report")
    page = reproduced.read(str(paths.PAGE))
    table = page[page.index('id="table1"') : page.index('id="detector"')]
    assert "make table1" not in table and "McNemar p" in table
    assert len(re.findall(r"\b20</small>", table)) == 5, (
        "each row has this seed; others of the same split may be there too"
    )
    now = {"params.yaml": reproduced.read("params.yaml"), "dvc.lock": without_page(reproduced.read("dvc.lock"))}
    assert now == text, "but for the page the workspace is as it was"


def without_page(lock: str) -> dict:
    """A dvc.lock, without the output that shows other experiments too."""
    stages = yaml.safe_load(lock)["stages"]
    stages["report"]["outs"] = [one for one in stages["report"]["outs"] if one["path"] != str(paths.PAGE)]
    return stages


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


def test_with_a_remote_a_clone_pulls_and_runs_only_what_acts_outside_dvc(reproduced, tmp_path):
    reproduced.run("git", "reset", "--quiet", "--hard")
    reproduced.run("dvc", "checkout", "--quiet")
    reproduced.run("dvc", "remote", "add", "--force", "--default", "storage", str(tmp_path / "storage"))
    reproduced.commit("A remote")
    reproduced.run("dvc", "push")
    other = reproduced.clone(tmp_path / "other")
    other.run("dvc", "pull")
    output = other.run("dvc", "repro")
    assert sorted(re.findall(r"Running stage '(\w+)'", output)) == ["check", "promote", "report"]
    assert "up to date" in other.run("dvc", "repro")
    assert (other.folder / paths.PAGE).is_file()
    # this clone's own store has no other experiments to show on the page
    assert other.run("git", "status", "--porcelain").split() in ([], ["M", "dvc.lock"])
    assert without_page(other.read("dvc.lock")) == without_page(reproduced.read("dvc.lock"))


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
    params = params.replace("per_class: 60", "per_class: 30").replace("reencode: false", "reencode: true")
    project.write("params.yaml", params)
    output = project.run("dvc", "repro", "audit")
    assert "WARNING" in output and "quantisation" in output and "resize.reencode" in output
    assert "bytes_reencoded" in json.loads(project.read("metrics/audit.json"))["groups"]
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


def test_another_weights_file_under_the_same_name_trains_again(origin, tmp_path):
    import torch

    from dfganext.models import classifier

    project = origin.clone(tmp_path / "df-ganext")
    weights = tmp_path / "weights.pth"
    params = re.sub(r"(  weights: )\S+", rf"\g<1>{weights}", project.read("params.yaml"), count=1)
    project.write("params.yaml", params)
    hashes = []
    for seed in (1, 2):
        torch.save(classifier.build("test_convnext", "ce", 32, seed=seed)[0].state_dict(), weights)
        output = project.run("dvc", "repro", "train_convnext")
        assert "Running stage 'train_convnext'" in output
        hashes.append(project.read("plots/convnext.csv"))
        assert "up to date" in project.run("dvc", "repro", "train_convnext")
    assert hashes[0] != hashes[1]
    listed = yaml.safe_load(project.read("dvc.lock"))["stages"]["train_convnext"]
    assert not [one["path"] for one in listed["deps"] if one["path"].startswith("/")]
    (run,) = runs(project, stage="train_convnext")[:1]
    assert run.data.tags["read.artifacts/weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_experiments_with_another_seed_are_compared_on_the_same_images(origin, tmp_path):
    project = origin.clone(tmp_path / "df-ganext")
    project.run("dvc", "repro", "promote")
    split = project.read(str(paths.SPLIT))
    project.run("dvc", "exp", "run", "-S", "seed=1", "promote")
    assert project.read(str(paths.SPLIT)) == split
    client = mlflow.MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    found = {int(one.version): one.tags for one in client.search_model_versions("name='df-ganext'")}
    assert found[2]["promotion.against"] == "1" and found[2]["promotion.images"] == "5 real, 5 fake"
