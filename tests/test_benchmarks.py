"""benchmarks/: the rivals give the same results and are configured as documented; the tables; what the README quotes."""

import base64
import csv
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
import uvicorn
from helpers import free_port
from mlflow.pyfunc import scoring_server

from benchmarks import (
    decisions,
    density,
    engines,
    explain,
    first_run,
    harness,
    pictures,
    predict,
    resize,
    scale,
    score,
    serve,
    summary,
    train_cpu,
    training,
)
from benchmarks.harness import Child, Goal, Table
from dfganext import images, runtime
from dfganext.models import classifier
from dfganext.models.folder import WEIGHTS_FILE


def test_row_has_medians_ratio_share_of_limit_and_goal():
    table = Table("x")
    table.add("a", "time", "s", [1.0, 4.0, 2.0], [6.0, 10.0], 1.5, Goal("ratio", least=4), against="A")
    table.add("b", "rate", "1/s", [8.0], [4.0], goal=Goal("ratio", least=3), better="higher", against="B")
    table.add("c", "memory", "MiB", [8.0], goal=Goal("ours", most=8))
    table.add("d", "error", "nats", [0.0], goal=Goal("ours", most=1e-6))
    first, second, third, fourth = table.rows
    assert [first[name] for name in ("ours", "ours_low", "ours_high", "rival", "ratio")] == ["2", "1", "4", "8", "4"]
    assert (first["share_of_limit"], first["goal"], first["reached"]) == ("0.75", "ratio >= 4", "yes")
    assert (second["ratio"], second["reached"], second["limit"]) == ("2", "no", "")
    assert (third["goal"], third["reached"], fourth["reached"]) == ("ours <= 8", "yes", "yes")
    assert [row["against"] for row in table.rows] == ["A", "B", "", ""]


@pytest.mark.parametrize("more", [{"rival": [3.0]}, {"against": "A"}])
def test_row_describes_its_rival_if_and_only_if_it_has_one(more):
    with pytest.raises(ValueError, match="a, time: give both the rival's values and its description"):
        Table("x").add("a", "time", "s", [1.0], **more)


def test_file_name_has_hardware_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    table = Table("subject")
    table.add("a", "time", "s", [1.0], [3.0], against="A")
    table.write("numpy")
    (file,) = (tmp_path / "results").iterdir()
    assert (
        file.name.startswith(f"subject-{harness.hardware()}-python3.")
        and "-torch2." in file.name
        and "-numpy" in file.name
    )
    with file.open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["ratio"] == "3" and row["against"] == "A"


@pytest.mark.slow
def test_contenders_alternate():
    order = []
    seconds = harness.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and [len(times) for times in seconds.values()] == [2, 2]


def test_child_returns_results_and_reports_failures():
    with Child("benchmarks.pictures") as child, pytest.raises(RuntimeError, match="picture failed"):
        child.call("picture", 8, "no seed")
    with Child("dfganext.runtime", plain=True) as child:
        assert child.call("cores") == runtime.cores()


def cases(table):
    return {(row["case"], row["against"]) for row in table.rows if row["rival"]}


@pytest.mark.slow
def test_resize_is_compared_with_pillow_in_a_pool_of_as_many_workers(tmp_path):
    table = Table("resize")
    resize.compare(table, "JPEG", 4, source=512, rounds=1)
    cores = runtime.cores()
    for filter in resize.INTERPOLATIONS:
        case = f"JPEG 512 to 256, {filter}"
        pools = {f"Pillow in a pool of {cores} {kind}" for kind in ("threads", "processes")}
        assert pools & {against for name, against in cases(table) if name == case}
        assert (f"{case}, one loop", "one loop over Pillow") in cases(table)


def test_resize_fails_if_the_rivals_pixels_differ():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    resize.assert_same_pixels(pixels, pixels + 1)
    with pytest.raises(AssertionError, match="differ by 2 of 255"):
        resize.assert_same_pixels(pixels, pixels + np.uint8(2))


def test_jpegs_decoded_with_draft_have_other_pixels(tmp_path):
    """Why the rival does not use `Image.draft`."""
    from PIL import Image

    path = tmp_path / "a.jpeg"
    path.write_bytes(pictures.encoded(1024, 0, "JPEG"))
    with Image.open(path) as image:
        image.draft("RGB", (512, 512))
        drafted = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS))
    with pytest.raises(AssertionError, match="differ by"):
        resize.assert_same_pixels(images.prepare(images.decode(path.read_bytes()), 256), drafted)


def test_log_densities_of_both_rivals_are_correct():
    points, queries = density.vectors(30, 50, seed=0), density.vectors(7, 50, seed=1)
    exact = [density.by_hand(points, query, 0.2) for query in queries]
    np.testing.assert_allclose(density.in_trees(points, queries, 0.2), exact, rtol=1e-10)
    np.testing.assert_allclose(density.in_numpy(points, queries, 0.2), exact, rtol=1e-10)


def test_numpy_rival_computes_in_chunks(monkeypatch):
    monkeypatch.setattr(density, "CHUNK", 3)
    test_log_densities_of_both_rivals_are_correct()


@pytest.mark.slow
def test_density_is_compared_with_both_rivals():
    table = Table("density")
    density.compare(table, 40, 6, 64, rounds=1)
    rivals = {row["against"] for row in table.rows if row["measure"] == "time"}
    assert rivals == {f"scikit-learn, `leaf_size` = n, {runtime.cores()} processes", density.NUMPY}
    assert {row["reached"] for row in table.rows if row["measure"] == "error"} == {"yes"}


CHANGES = {
    "convnext.architecture": "test_convnext",
    "convnext.size": 32,
    "convnext.batch_size": 4,
    "convnext.precision": "bfloat16",
    "machine.device": "cpu",
    "machine.workers": 2,
}


@pytest.fixture
def rival(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_state", {})
    training.write_files(tmp_path, 8)
    training.prepare_rival(str(tmp_path), CHANGES, None)
    return training._state


def test_training_rival_caches_decoded_images_and_trains_in_bfloat16_and_channels_last(rival, tmp_path):
    assert isinstance(rival["data"].pixels, np.ndarray) and rival["data"].pixels.dtype == np.uint8
    files = training.files_of(str(tmp_path), None)
    ours = [images.prepare(images.decode(file.read_bytes()), 32) for file in files]
    np.testing.assert_array_equal(rival["data"].pixels, ours)
    assert rival["optimiser"].defaults["fused"] is True
    assert rival["loader"].num_workers == 2 and rival["loader"].persistent_workers
    seen = []
    convolution = next(layer for layer in rival["model"].modules() if isinstance(layer, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda layer, given, output: seen.append((given[0], output)))
    training.epoch_rival(0)
    assert len(seen) == 2
    for given, output in seen:
        assert given.is_contiguous(memory_format=torch.channels_last) and output.dtype == torch.bfloat16
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_workers_of_the_training_rival_augment_differently(rival):
    rival["data"].pixels[:] = rival["data"].pixels[0]
    batches = [batch.numpy() for batch, _ in rival["loader"]]  # one per worker
    assert not np.array_equal(batches[0], batches[1])


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([0.7, 0.5], [0.7, 0.4], "losses differ"),
        ([0.7, 0.5], [0.8, 0.5], "losses differ"),
        ([0.7, 0.7], [0.7, 0.7], "did not change the loss"),
    ],
)
def test_training_fails_if_the_rivals_losses_differ(ours, theirs, message):
    def child(losses):
        remaining = iter(losses)
        return SimpleNamespace(call=lambda name, *_: next(remaining) if name.startswith("loss") else None)

    with pytest.raises(AssertionError, match=message):
        training.assert_same_training(child(ours), child(theirs), "folder", {})


@pytest.mark.slow
def test_training_on_a_cpu_is_compared_with_its_rival():
    table = Table("train_cpu")
    train_cpu.compare(table, 32, 32, 16, "test_convnext", rounds=1)
    assert cases(table) == {("32 px, test_convnext, batches of 16", train_cpu.AGAINST)}


@pytest.mark.slow
def test_training_is_compared_with_memory_as_glibc_manages_it():
    table = Table("train_cpu")
    train_cpu.compare_memory(table, "test_efficientnet", 32, 32, 16, rounds=1)
    measured = {row["measure"]: row for row in table.rows}
    assert list(measured) == ["time", "processor time in the kernel", "memory"]
    assert all(float(row["ours"]) >= 0 and float(row["rival"]) >= 0 for row in table.rows)
    assert float(measured["memory"]["ours"]) > 100 and float(measured["processor time in the kernel"]["ours"]) <= 100


def test_served_rival_predicts_the_same_probabilities(tmp_path):
    from benchmarks.served_rival import Classifier

    model, config = classifier.build("test_convnext", "ce", 32, seed=0)
    classifier.save(tmp_path, model.state_dict(), config)
    facts = {"architecture": "test_convnext", "outputs": 2, "size": 32, "precision": "float32"}
    (tmp_path / "facts.json").write_text(json.dumps(facts | {"mean": config.mean, "std": config.std}))
    rival = Classifier()
    rival.load_context(
        SimpleNamespace(artifacts={"weights": tmp_path / WEIGHTS_FILE, "config": tmp_path / "facts.json"})
    )
    data = [pictures.encoded(64, seed, "JPEG") for seed in range(3)]
    pixels = np.stack([config.prepare(images.decode(one)) for one in data])
    expected = 1 / (1 + np.exp(-classifier.predict_logits(model, config, pixels)))
    records = rival.predict(None, {"image": [base64.b64encode(one).decode() for one in data]})
    np.testing.assert_allclose([record["p_fake"] for record in records], expected, atol=1e-5)


@pytest.mark.slow
def test_engines_are_compared_with_pytorch():
    table = Table("engines")
    engines.compare(table, "test_convnext", 32, rounds=1, calls=1)
    assert len(table.rows) == 6 and {row["against"] for row in table.rows} == {engines.AGAINST}
    assert all(float(row["ratio"]) > 0 for row in table.rows)


@contextmanager
def served_in_this_process(model):
    """The address of MLflow's server, in a thread: `mlflow models serve` imports PyTorch first, once for each model."""
    app = scoring_server.init(mlflow.pyfunc.load_model(str(model)))
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="error"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.run)
        address = f"http://127.0.0.1:{server.config.port}"
        try:
            while not serve.is_up(address):
                assert not running.done(), running.exception()
                time.sleep(0.05)
            yield address
        finally:
            server.should_exit = True  # the pool waits for it


@pytest.mark.slow
def test_serving_is_compared_with_its_rival_with_each_engine_and_precision(monkeypatch):
    """All models are the same kind of MLflow model, so one of them is served by the command."""
    by_command = serve.served
    monkeypatch.setattr(
        serve, "served", lambda model: (by_command if model.name == "rival-float32" else served_in_this_process)(model)
    )
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # restored afterwards; MLflow would leave it set
    table = Table("serve")
    serve.compare(table, "test_convnext", 32, turns=1, burst=2, client_requests=1, rounds=1)
    names = {f"{what}, {', '.join(kind)}" for what in ("one image", "8 clients") for kind in serve.KINDS}
    assert cases(table) == {(name, serve.AGAINST) for name in names}


def test_scale_runs_with_the_shipped_settings(tmp_path):
    assert scale.subsample(40)[0] > 0
    assert scale.near_duplicates(40)[0] > 0
    pictures.folder_of(tmp_path, 4, scale.SIZE, "PNG")
    assert scale.resize(str(tmp_path), 4)[0] > 0


def test_score_is_compared_with_bare_processes_on_the_same_images(monkeypatch):
    """Which commands are timed; the commands themselves are not run."""
    commands = []
    monkeypatch.setattr(score, "run", commands.append)
    table = Table("score")
    score.compare(table, "test_convnext", 32, count=4, rounds=1, starts=1)
    assert [row["measure"] for row in table.rows] == ["rate", "start"]
    assert all(float(row["ratio"]) > 0 for row in table.rows)
    ours, bare = ([one for one in commands if len(one) == count] for count in (1, score.WORKERS))
    assert [Path(one[0][4]).name for one in ours] == [Path(one[0][4]).name for one in bare] == ["few", "few", "all"]
    assert [[words[5:] for words in one] for one in bare] == [[["0", "2"], ["1", "2"]]] * 3
    assert len({one[0][5] for one in ours}) == 3  # each run has a folder of rows of its own
    compile(score.BARE, "bare", "exec")


@pytest.mark.slow
def test_score_is_compared_with_bare_processes():
    pytest.importorskip("ray")
    table = Table("score")
    score.compare(table, "test_convnext", 32, count=20, rounds=1, starts=0)
    (row,) = table.rows
    assert row["measure"] == "rate" and float(row["ratio"]) == pytest.approx(float(row["share_of_limit"]), rel=1e-3)


def test_stages_are_timed_by_what_dvc_prints(tmp_path):
    lines = ["setting up", "Running stage 'check':", "> python -m stages.check", "Running stage 'resize':"]
    script = "import time\nfor line in " + repr(lines) + ":\n    print(line, flush=True)\n    time.sleep(0.3)"
    stages, whole = first_run.timed_stages([sys.executable, "-c", script], tmp_path, dict(os.environ))
    assert list(stages) == ["check", "resize"]
    assert 0.6 <= stages["check"] < whole - 0.6 and 0.3 <= stages["resize"] < whole - 0.9


def test_error_has_the_output_of_a_first_run_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match=r"failed:\nno space left"):
        first_run.timed_stages(["sh", "-c", "echo no space left; exit 3"], tmp_path, dict(os.environ))


def test_a_decision_is_timed_per_image():
    table = Table("decisions")
    decisions.measure(table, "small", 16, calls=3, rounds=2)
    assert float(table.rows[0]["ours"]) > 0 and table.rows[0]["goal"] == "ours <= 2"


def test_maps_are_compared_with_pytorch_grad_cam():
    table = Table("explain")
    explain.compare(table, "test_convnext", 4, size=64, rounds=1)
    assert float(table.rows[0]["ratio"]) > 0 and table.rows[0]["against"] == explain.AGAINST
    maps = np.random.default_rng(0).random((2, 3, 4, 4)).astype(np.float32)
    with pytest.raises(AssertionError, match="correlation"):
        explain.assert_same(maps, np.ones((2, 3, 1, 1)) * np.random.default_rng(1).random((2, 3, 64, 64)))


@pytest.mark.slow
def test_predict_is_compared_with_taking_turns():
    table = Table("predict")
    predict.compare(table, "test_convnext", 64, count=40, rounds=1)
    assert float(table.rows[0]["ratio"]) > 0 and float(table.rows[0]["share_of_limit"]) > 0


def test_summary_has_one_row_per_rival_and_only_speeds(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    table = Table("density")
    table.add("5 points, 2 queries", "time", "s", [2.0], [5.0], against="A")
    table.add("5 points, 2 queries", "time", "s", [2.0], [1.0], against="B")
    table.add("5 points, 2 queries", "memory", "MiB", [2.0], [1.0], against="B")
    table.write()
    table = Table("resize")
    table.add("PNG 1024 to 256, bicubic", "time", "s", [2.0], [3.0], against="C")
    table.add("PNG 1024 to 256, bicubic, one loop", "time", "s", [2.0], [6.0], against="D")
    table.write()
    assert summary.table()[2:] == [
        "| exact kernel density, d = 16,384, of 5 points | A | 2.5 |",
        "| exact kernel density, d = 16,384, of 5 points | B | 0.5 |",
        "| PNG of 1024 px to 256, bicubic | C | 1.5 |",
    ]


def test_readme_quotes_the_files(root):
    assert any(summary.results().values())
    assert "\n".join(summary.table()) in (root / "docs" / "benchmarks.md").read_text()
