import base64
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import detector, faces, hashes, promote, promotion_settings
from PIL import Image
from processes import run_at_once

from dfganext import files
from dfganext.errors import UserError
from dfganext.inference.detector import Detector
from dfganext.tracking import comparison, promotion, registry, store
from dfganext.training import compute


def data_here(bits=8):
    return comparison.Data.read(Path("split.csv"), Path("manifest.csv"), Path("raw"), bits)


def tags_of(version):
    return store.connect()[0].get_model_version(registry.MODEL, str(version)).tags


def test_the_better_model_becomes_champion_and_the_worse_is_refused_with_a_reason(here, run_id):
    first, second, third = promote("bad", run_id), promote("good", run_id, tags={"a": "b"}), promote("bad", run_id)
    assert [one.outcome for one in (first, second, third)] == ["promoted", "promoted", "refused"]
    assert [one.version for one in (first, second, third)] == ["1", "2", "1"]  # the same contents are the same version
    assert first.comparison is None and "there was no champion" in first.reason.lower()
    assert second.comparison.other_score == first.score < 0.5 < second.score == third.comparison.other_score
    assert registry.champion().version == 2
    refused, promoted = tags_of(1), tags_of(2)
    assert refused["promotion"] == "refused"
    assert f"{first.score:.4f} against the {second.score:.4f} of version 2" in refused["promotion.reason"]
    assert promoted["promotion"] == "promoted" and promoted["trained_by"] == run_id and promoted["a"] == "b"
    assert promoted["weights.sha256"] == files.sha256_of("good/model.safetensors")
    assert promoted["architecture"] == "test_convnext" and promoted["trained_on.images"] == "2"

    again = promote("good", run_id)
    assert (again.outcome, again.version, again.champion) == ("champion", "2", "2")


def test_the_paired_difference_and_its_interval_are_kept_with_the_version(here, run_id):
    promote("bad", run_id), promote("good", run_id)
    tags = tags_of(2)
    p = {name: p_fake_of(name) for name in ("good", "bad")}
    labels = data_here().labels
    expected = auc(labels, p["good"]) - auc(labels, p["bad"])
    assert float(tags["promotion.difference"]) == pytest.approx(expected, abs=1e-5)
    low, high = map(float, tags["promotion.interval"].split())
    assert 0 < low < expected < high <= 1
    assert (tags["promotion.against"], tags["promotion.images"]) == ("1", "20 real, 20 fake")


def p_fake_of(name):
    data = data_here()
    return comparison.probabilities_of(Detector.load(Path(name)), [data.raw / path for path in data.validation.path])


def auc(labels, p):
    return np.mean([(a > b) + 0.5 * (a == b) for a in p[labels == 1] for b in p[labels == 0]])


def test_images_that_the_champion_was_trained_on_are_left_out(here, run_id):
    """Another split makes some of the champion's training images validation images of the candidate."""
    promote("bad", run_id)
    faces(here, drawn=5)
    data = data_here()
    assert {"real/0.png", "fake/0.png"} <= set(data.validation.path)
    result = promote("good", run_id)
    assert result.outcome == "promoted" and result.comparison.images == (19, 19)
    rows = ~data.validation.path.isin(["real/0.png", "fake/0.png"])
    assert result.score == pytest.approx(auc(data.labels[rows], p_fake_of("good")[rows]))


def test_near_duplicates_of_training_images_are_left_out_too_mirrored_or_not(here):
    data = data_here()
    of_three, of_four = hashes(0, 3), hashes(1, 4)
    trained_on = pd.DataFrame(
        [
            {"sha256": "a", "group": 0, **of_three},
            {"sha256": "b", "group": 1, "phash": of_four["phash_mirrored"], "phash_mirrored": of_four["phash"]},
            {"sha256": data.validation.sha256[7], "group": 2, **hashes(3, 3)},
        ]
    )
    unseen = data.unseen_by(trained_on)
    assert set(data.validation.path[~unseen]) == {"real/3.png", "fake/4.png", data.validation.path[7]}
    assert data.unseen_by(data.trained_on).all()


def test_where_too_few_images_are_left_the_candidate_is_refused_with_the_numbers(here, run_id):
    promote("bad", run_id)
    faces(here, drawn=5)
    result = promote("good", run_id, min_images=20)
    assert (result.outcome, result.champion) == ("refused", "1")
    for part in (
        "only 19 real and 19 fake of 40 validation images",
        "promote.min_images (20)",
        "subsample.seed",
        "by hand",
    ):
        assert part in tags_of(2)["promotion.reason"].replace("Only", "only")
    assert "promotion.difference" not in tags_of(2)


def test_a_champion_without_a_list_of_training_images_is_not_compared(here, run_id, monkeypatch):
    promote("bad", run_id)
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda *known: (found[0], None) if (found := load(*known)) else None)
    result = promote("good", run_id)
    assert (result.outcome, result.champion) == ("refused", "1")
    assert "ersion 1 has no list of its training images" in result.reason and "by hand" in result.reason


@pytest.mark.parametrize("change", ["code", "requirements", "config", "operating point"])
def test_the_same_weights_with_other_code_or_settings_replace_the_champion(here, run_id, monkeypatch, change):
    promote("good", run_id)
    shutil.copytree("good", "other", dirs_exist_ok=True)
    if change == "code":
        real = registry.served_code()
        changed = here / "images.py"
        changed.write_text(real["images.py"].read_text() + "# mended\n")
        monkeypatch.setattr(registry, "served_code", lambda: real | {"images.py": changed})
    elif change == "requirements":
        lines = registry.requirements()
        monkeypatch.setattr(registry, "requirements", lambda: [*lines[:-1], "torchvision>=0.20"])
    elif change == "config":
        config = json.loads(Path("other/config.json").read_text())
        Path("other/config.json").write_text(json.dumps(config | {"interpolation": "bicubic"}))
    else:
        Path("other/operating_point.json").write_text(json.dumps({"threshold": 0.4, "temperature": 1.0}))
    result = promote("other", run_id)
    assert (result.outcome, result.version, result.champion) == ("promoted", "2", "2")
    assert "and replaces it" in tags_of(2)["promotion.reason"]
    assert promote("other", run_id).outcome == "champion"
    shutil.rmtree("other")


needs_bfloat16 = pytest.mark.skipif(
    compute.precision("auto", torch.device("cpu")) != torch.bfloat16,
    reason="needs a processor that computes in bfloat16",
)


@needs_bfloat16
def test_a_faster_precision_is_part_of_the_version_and_gives_the_same_predictions(here, run_id):
    first, second = promote("good", run_id), promote("good", run_id, precision="bfloat16")
    assert (first.version, second.version, second.champion) == ("1", "2", "2")
    paths = [here / "raw" / path for path in data_here().validation.path]
    p_fake = {}
    for version in ("1", "2"):
        with registry.resolve(f"models:/{registry.MODEL}/{version}") as folder:
            loaded = Detector.load(folder)
            p_fake[loaded.precision] = comparison.probabilities_of(loaded, paths)
    np.testing.assert_allclose(p_fake["bfloat16"], p_fake["float32"], rtol=0, atol=1e-3)
    assert not np.array_equal(p_fake["bfloat16"], p_fake["float32"])


def test_a_precision_that_cannot_be_measured_here_is_refused(here, run_id, monkeypatch):
    monkeypatch.setattr(compute, "precision", lambda setting, device: torch.float32)
    with pytest.raises(UserError, match=r"bfloat16 cannot be measured here, because the cpu .* set it to float32"):
        promote("good", run_id, precision="bfloat16")
    assert registry.champion() is None


@needs_bfloat16
def test_a_precision_that_changes_the_predictions_is_refused(here, run_id, monkeypatch):
    monkeypatch.setattr(promotion, "MAX_PROBABILITY_SHIFT", -1.0)
    with pytest.raises(UserError, match=r"promote\.precision: bfloat16 moves p_fake by up to .* set it to float32"):
        promote("good", run_id, precision="bfloat16")
    assert registry.champion() is None


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_is_part_of_the_version_and_gives_the_same_predictions(here, run_id, engine):
    first, second = promote("good", run_id), promote("good", run_id, engine=engine)
    assert (first.version, second.version, second.champion) == ("1", "2", "2")
    assert [tags_of(version)["engine"] for version in ("1", "2")] == ["torch", engine]
    assert promote("good", run_id, engine=engine).outcome == "champion"  # its ONNX model is made anew
    paths = [here / "raw" / path for path in data_here().validation.path]
    with registry.resolve(f"models:/{registry.MODEL}/2") as folder:
        assert engine in (folder.parent.parent / "requirements.txt").read_text()
        loaded = Detector.load(folder)
        assert loaded.engine.name == engine
        found = comparison.probabilities_of(loaded, paths)
    np.testing.assert_allclose(found, p_fake_of("good"), rtol=0, atol=1e-5)
    served = store.import_mlflow().pyfunc.load_model(f"models:/{registry.MODEL}/2")
    text = base64.b64encode(paths[0].read_bytes()).decode()
    assert served.predict(pd.DataFrame({"image": [text]}))[0]["p_fake"] == pytest.approx(found[0], abs=1e-6)


@pytest.mark.slow
def test_an_engine_that_changes_the_predictions_is_refused(here, run_id, monkeypatch):
    monkeypatch.setattr(promotion, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(UserError, match=r"promote\.engine: onnxruntime moves p_fake by up to .* set it to torch"):
        promote("good", run_id, engine="onnxruntime")
    assert registry.champion() is None


def test_an_architecture_without_onnx_is_refused_with_the_setting(here, run_id, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(UserError, match=r"cannot be exported to ONNX .*: set promote\.engine to torch"):
        promote("good", run_id, engine="onnxruntime")
    assert registry.champion() is None


def test_other_architectures_are_registered_but_never_champion(here, run_id):
    result = promote("good", run_id, architectures=("convnext_tiny",))
    assert (result.outcome, result.champion) == ("refused", None)
    assert "promote.architectures" in tags_of(1)["promotion.reason"]
    assert registry.champion() is None
    assert promote("good", run_id, architectures=("test_convnext.with_weights",)).outcome == "promoted"


def test_a_champion_whose_files_are_gone_is_replaced_with_a_warning(here, run_id):
    promote("good", run_id)
    shutil.rmtree(here / "mlruns")
    with pytest.warns(UserWarning, match="models:/df-ganext/1 cannot be loaded"):
        result = promote("bad", run_id)
    assert (result.outcome, result.champion) == ("promoted", "2")
    assert "could not be loaded" in result.reason


def test_a_champion_that_is_whole_and_cannot_be_loaded_here_stays(here, run_id, monkeypatch):
    """As with an engine that is not installed, or a version that a newer clone has made."""
    promote("good", run_id)
    load = Detector.load

    def fails(folder, *arguments, **options):
        of_good = files.sha256_of(folder / "model.safetensors") == files.sha256_of("good/model.safetensors")
        if folder.name == "detector" and of_good:
            raise UserError("OpenVINO is not installed.")
        return load(folder, *arguments, **options)

    monkeypatch.setattr(Detector, "load", fails)
    with pytest.raises(
        UserError, match=r"models:/df-ganext/1 cannot be loaded here, .*OpenVINO is not installed.*update this"
    ):
        promote("bad", run_id)
    assert registry.champion().version == 1
    store.connect()[0].delete_registered_model_alias(registry.MODEL, registry.CHAMPION)
    store.connect()[0].set_model_version_tag(registry.MODEL, "1", "promotion", "candidate")
    with pytest.warns(UserWarning, match="models:/df-ganext/1 cannot be loaded here"):
        assert promote("bad", run_id).champion == "2"


def test_the_device_of_the_settings_is_used_for_both(here, run_id, monkeypatch):
    devices = []
    load = Detector.load

    def watched(folder, operating_point=None, device=None, threshold=None):
        devices.append(device)
        return load(folder, operating_point, device, threshold)

    monkeypatch.setattr(Detector, "load", watched)
    for name in ("bad", "good"):
        promote(name, run_id, device=torch.device("cpu"))
    assert len(devices) == 5 and set(devices) == {torch.device("cpu")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        shutil.rmtree,
        lambda folder: cut(folder / "artifacts/detector/model.safetensors"),
        lambda folder: (folder / "artifacts/trained_on.csv").write_text(""),
    ],
    ids=["all", "weights", "training images"],
)
def test_a_damaged_version_is_replaced_by_the_same_candidate(here, run_id, harm):
    promote("bad", run_id), promote("good", run_id)
    for version, champion in (("2", "3"), ("1", "3"), ("3", "5")):
        (folder,) = (here / "mlruns" / "models").glob(f"{model_id(version)}/artifacts")
        harm(folder)
        with pytest.warns(UserWarning, match=f"models:/df-ganext/{version} cannot be loaded"):
            result = promote("bad" if version == "1" else "good", run_id)
        assert result.champion == champion
        with registry.resolve(registry.CHAMPION_URI) as loaded:
            Detector.load(loaded)


def cut(file):
    file.write_bytes(file.read_bytes()[:1000])


def model_id(version):
    return store.connect()[0].get_model_version(registry.MODEL, version).source.removeprefix("models:/")


def test_images_within_the_limits_of_download_can_be_compared_on(made, tmp_path):
    """The served model's own limits are narrower than those that a data set may have."""
    small = tmp_path / "small.png"
    Image.new("RGB", (8, 8), "grey").save(small)
    one = Detector.load(made / "good")
    assert one.predict([small.read_bytes()])[0].error is not None
    assert 0 < comparison.probabilities_of(one, [small])[0] < 1


def test_a_champion_stays_if_the_store_fails_to_load_it(here, run_id, monkeypatch):
    promote("good", run_id)

    def fails(*_):
        raise store.StoreError("The tracking store http://host cannot be used.")

    monkeypatch.setattr(registry, "_download", fails)
    with pytest.raises(UserError, match="http://host"):
        promote("bad", run_id)
    assert registry.champion().version == 1


@pytest.mark.parametrize(
    ("metric", "difference", "expected"),
    [
        ("roc_auc", 0.1, True),
        ("roc_auc", 0.0, False),
        ("log_loss", -0.1, True),
        ("log_loss", 1, False),
        ("accuracy", np.nan, False),
    ],
)
def test_better_is_strict_and_depends_on_the_direction_of_the_metric(metric, difference, expected):
    assert comparison.Comparison(metric, "1", (20, 20), difference=difference).better is expected


@pytest.mark.parametrize("metric", ["roc_auc", "accuracy", "log_loss"])
def test_scores_and_differences_against_a_slow_reference(here, monkeypatch, metric):
    monkeypatch.setattr(comparison, "BATCH", 7)
    data = data_here()
    detectors = {name: Detector.load(Path(name)) for name in ("good", "bad")}
    good, bad = (comparison.Candidate(name, name, one, data.trained_on, data) for name, one in detectors.items())
    found = comparison.compare(good, bad, promotion_settings(metric=metric))
    scores = []
    for one in (good.detector, bad.detector):
        p = np.array([one.predict([(data.raw / path).read_bytes()])[0].p_fake for path in data.validation.path])
        fake = data.labels == 1
        scores.append(
            {
                "roc_auc": auc(data.labels, p),
                "accuracy": np.mean((p > one.threshold) == fake),
                "log_loss": -np.mean(np.log(np.where(fake, p, 1 - p))),
            }[metric]
        )
    assert (found.score, found.other_score) == pytest.approx(tuple(scores), abs=1e-6)
    assert found.difference == pytest.approx(scores[0] - scores[1], abs=1e-6)
    assert found.interval[0] <= found.difference <= found.interval[1]


def test_missing_images_and_classes_are_named(here, tmp_path):
    with pytest.raises(UserError, match=r"real/0\.png can no longer be read"):
        comparison.probabilities_of(Detector.load(Path("good")), [tmp_path / "real/0.png"])
    table = [row for row in Path("split.csv").read_text().splitlines() if ",fake," not in row]
    (tmp_path / "split.csv").write_text("\n".join(table) + "\n")
    with pytest.raises(UserError, match="no validation images of both classes"):
        comparison.Data.read(tmp_path / "split.csv", Path("manifest.csv"), Path("raw"), 8)


PROMOTE = """
import sys
import helpers
helpers.promote(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_of_two_simultaneous_promotions_the_better_model_is_champion(here, run_id, tmp_path):
    run_at_once(PROMOTE, [["good", run_id], ["bad", run_id]], tmp_path)
    assert tags_of(registry.champion().version)["weights.sha256"] == files.sha256_of("good/model.safetensors")


STEPS = ["before it is registered", "before it is tagged", "before it sets the alias", "after it set the alias"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("early", "late"), [("good", "bad"), ("bad", "good")])
@pytest.mark.parametrize("present", [None, "middling"])
def test_without_a_lock_the_better_of_two_simultaneous_models_is_champion(
    here, run_id, monkeypatch, early, late, step, present
):
    """Another machine promotes `early` completely during one step of the promotion of `late` by this one."""
    monkeypatch.setattr(store, "lock", lambda purpose="setup": nullcontext())
    if present:
        detector(here / present, good=False)
        Path(present, "config.json").write_text(Path(present, "config.json").read_text().replace("lanczos", "bicubic"))
        promote(present, run_id, tags={"first": "yes"})
    pending = [early]

    def promote_early():
        if pending:
            promote(pending.pop(), run_id)

    names = {
        "before it is registered": (registry, "register", True),
        "before it is tagged": (promotion, "_set_tags", True),
        "before it sets the alias": (promotion._Selection, "_best", False),
        "after it set the alias": (store.Client, "__getattr__", False),
    }
    owner, name, first = names[step]
    real = getattr(owner, name)
    if step == "after it set the alias":

        def watched(self, called):
            method = real(self, called)
            if called != "set_registered_model_alias":
                return method

            def alias(*arguments):
                method(*arguments)
                promote_early()

            return alias
    else:

        def watched(*arguments):
            if first:
                promote_early()
                return real(*arguments)
            found = real(*arguments)
            promote_early()
            return found

    monkeypatch.setattr(owner, name, watched)
    promote(late, run_id)
    assert not pending
    assert tags_of(registry.champion().version)["weights.sha256"] == files.sha256_of("good/model.safetensors")


INTERRUPTED = """
import os, signal, sys
import helpers
from dfganext.tracking import promotion
promotion._Selection._best = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
child = os.fork()
if not child:
    helpers.promote("good", sys.argv[1])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.mark.slow
def test_the_candidate_of_a_killed_promotion_is_no_contender(here, run_id, tmp_path):
    detector(here / "middling", good=False, threshold=0.7)
    promote("bad", run_id)
    run_at_once(INTERRUPTED, [[run_id]], tmp_path)
    assert tags_of(2)["promotion"] == "candidate"
    result = promote("middling", run_id)
    assert result.champion in ("1", "3") and tags_of(2)["promotion"] == "interrupted"
    assert promote("good", run_id).champion == "2"


@pytest.mark.slow
def test_a_version_that_was_champion_before_can_be_promoted_again(here, run_id):
    promote("bad", run_id), promote("good", run_id)
    store.connect()[0].set_registered_model_alias(registry.MODEL, registry.CHAMPION, "1")
    again = promote("good", run_id)
    assert (again.outcome, again.version, again.champion) == ("promoted", "2", "2")


@pytest.mark.slow
def test_a_champion_set_by_hand_is_compared_and_no_earlier_champion_returns(here, run_id):
    promote("bad", run_id), promote("good", run_id)
    store.connect()[0].set_registered_model_alias(registry.MODEL, registry.CHAMPION, "1")
    detector(here / "third", good=False, threshold=0.7)
    config = here / "third" / "config.json"
    config.write_text(config.read_text().replace("lanczos", "bilinear"))
    result = promote("third", run_id)
    assert result.champion in ("1", "3") and tags_of(3)["promotion.against"] == "1"
