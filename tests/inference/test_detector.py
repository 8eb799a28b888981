"""From bytes to prediction: calibrated, at the decision threshold, prepared as in training."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import add_rule, detector, png
from PIL import Image

from dfganext import images
from dfganext.errors import UserError
from dfganext.inference.detector import Detector
from dfganext.models import classifier


@pytest.fixture
def folder(tmp_path):
    return detector(tmp_path / "detector", good=True)


def write_point(folder, **point):
    (folder / "operating_point.json").write_text(json.dumps(point))


def logits_of(folder, pixels):
    return classifier.predict_logits(*classifier.load(folder), pixels)


def test_p_fake_is_calibrated(folder):
    data = [png(label, label) for label in (0, 1)]
    pixels = np.stack([images.resize(images.decode(one), 32) for one in data])
    logits = logits_of(folder, pixels)
    for threshold, temperature in ((0.5, 1.0), (0.5, 0.25), (0.4, 3.0)):
        write_point(folder, threshold=threshold, temperature=temperature)
        loaded = Detector.load(folder)
        expected = 1 / (1 + np.exp(-logits / temperature))
        predictions = loaded.predict(data)
        assert [prediction.p_fake for prediction in predictions] == pytest.approx(expected, abs=1e-6)
        assert {prediction.threshold for prediction in predictions} == {threshold}
        for prediction, p in zip(predictions, expected, strict=True):
            assert prediction.label == ("fake" if p > prediction.threshold else "real")


def test_decisions_follow_the_rule(folder):
    data = [png(number % 2, number) for number in range(8)]
    add_rule(folder, real_up_to=0.45, fake_above=0.5)
    loaded = Detector.load(folder)
    pixels = np.stack([loaded.config.prepare(images.decode(one)) for one in data])
    p_fake, novelty = loaded.scores(pixels).T
    expected = ["fake" if p > 0.5 else "real" if p <= 0.45 else "unsure" for p in p_fake]
    assert [one.decision for one in loaded.predict(data)] == expected
    add_rule(folder, novel_above=float(np.sort(novelty)[3]))
    reasons = [one.reason or "" for one in Detector.load(folder).predict(data)]
    assert sum(reason.startswith("unlike the training images") for reason in reasons) == 4


def test_features_are_needed_beside_the_operating_point(folder):
    add_rule(folder)
    (folder / "features.safetensors").unlink()
    with pytest.raises(UserError, match=r"features\.safetensors holds no features of training images"):
        Detector.load(folder)
    add_rule(folder, novel_above=None)
    (folder / "features.safetensors").unlink()
    assert Detector.load(folder).neighbours is None


def test_copies_for_stability_are_made_of_the_whole_image(folder):
    """At half size and saved again by Pillow itself."""
    image = Image.open(io.BytesIO(png(0, 1))).convert("RGB")
    half = image.resize((20, 20), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50, subsampling="4:2:0")
    expected = {"half_size": half, "jpeg_50": Image.open(buffer)}
    loaded = Detector.load(folder)
    (found,) = loaded.predict([png(0, 1)], stability=True)
    for name, copy in expected.items():
        p_fake = loaded.probabilities(loaded.config.prepare(np.asarray(copy))[None])[0]
        assert found.stability[name].p_fake == pytest.approx(p_fake, abs=1e-6), name


def test_an_image_that_no_jpeg_can_hold_has_no_copies_and_affects_no_other(folder):
    buffer = io.BytesIO()
    Image.new("RGB", (66_000, 16)).save(buffer, "PNG")
    loaded = Detector.load(folder)
    assert loaded.predict([buffer.getvalue()])[0].error is None
    long, other = loaded.predict([buffer.getvalue(), png(0, 1)], stability=True)
    assert long.error == "cannot be saved as JPEG, which has at most 65,500 pixels on a side" and long.label is None
    assert other.error is None and set(other.stability) == {"jpeg_75", "jpeg_50", "half_size"}


def test_a_detector_trained_on_reencoded_images_reencodes_its_input(folder):
    model, config = classifier.load(folder)
    classifier.save(folder, model.state_dict(), replace(config, reencode=True))
    data = png(1, 5)
    plain = images.prepare(images.decode(data), 32, reencode=False)
    reencoded = images.prepare(images.decode(data), 32, reencode=True)
    assert not np.array_equal(plain, reencoded)
    (prediction,) = Detector.load(folder).predict([data])
    expected = 1 / (1 + np.exp(-logits_of(folder, reencoded[None])[0]))
    assert prediction.p_fake == pytest.approx(expected, abs=1e-6)


def test_a_detector_resizes_its_input_like_its_training_images(folder):
    model, config = classifier.load(folder)
    classifier.save(folder, model.state_dict(), replace(config, interpolation="bilinear"))
    data = png(1, 64)
    prepared = images.prepare(images.decode(data), 32, "bilinear")
    assert not np.array_equal(prepared, images.prepare(images.decode(data), 32))
    (prediction,) = Detector.load(folder).predict([data])
    assert prediction.p_fake == pytest.approx(1 / (1 + np.exp(-logits_of(folder, prepared[None])[0])), abs=1e-6)


def test_a_config_without_reencode_and_interpolation_loads(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["reencode"], config["interpolation"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = Detector.load(folder).config
    assert (loaded.reencode, loaded.interpolation) == (False, "lanczos")


def test_a_config_with_the_former_name_of_reencode_loads(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["reencode"]
    (folder / "config.json").write_text(json.dumps(config | {"equalise": True}))
    assert Detector.load(folder).config.reencode is True


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "",
        "[]",
        "3",
        '{"threshold": "0.5", "temperature": 1}',
        '{"threshold": [], "temperature": 1}',
        '{"threshold": NaN, "temperature": 1}',
        '{"threshold": Infinity, "temperature": 1}',
        '{"threshold": true, "temperature": 1}',
        '{"threshold": 0.5, "temperature": 0}',
        '{"threshold": 0.5, "temperature": [1]}',
        '{"threshold": 0.5, "temperature": 1, "precision": "float16"}',
        '{"threshold": 0.5, "temperature": 1, "precision": ["float32"]}',
    ],
)
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_a_file_that_is_not_an_operating_point_is_named(folder, content, threshold):
    (folder / "operating_point.json").write_text(content)
    with pytest.raises(UserError, match=r"operating_point\.json is not an operating point \(.+\)"):
        Detector.load(folder, threshold=threshold)


WHAT_TO_DO = r"operating_point\.json {}: .*`dvc repro evaluate`.*--threshold"


def test_a_folder_without_an_operating_point_is_refused(folder):
    (folder / "operating_point.json").unlink()
    with pytest.raises(UserError, match=WHAT_TO_DO.format("is missing")):
        Detector.load(folder)


@pytest.mark.parametrize(
    ("point", "lacking"),
    [
        ({"temperature": 2.0}, "threshold"),
        ({"threshold": None, "temperature": 2.0}, "threshold"),
        ({"threshold": 0.4}, "temperature"),
        ({}, "threshold and no temperature"),
    ],
)
def test_an_incomplete_operating_point_is_refused(folder, point, lacking):
    write_point(folder, **point)
    with pytest.raises(UserError, match=WHAT_TO_DO.format(f"has no {lacking}")):
        Detector.load(folder)


def test_a_given_operating_point_must_exist(folder, tmp_path):
    with pytest.raises(UserError, match=r"none\.json is missing: .*`dvc repro evaluate`"):
        Detector.load(folder, tmp_path / "none.json")


@pytest.mark.parametrize(
    ("point", "temperature", "calibrated"),
    [
        (None, 1.0, False),
        ({}, 1.0, False),
        ({"threshold": 0.9}, 1.0, False),
        ({"temperature": 3.0}, 3.0, True),
        ({"threshold": 0.9, "temperature": 3.0}, 3.0, True),
    ],
)
def test_a_given_threshold_replaces_the_files_and_an_unknown_temperature_is_1(folder, point, temperature, calibrated):
    (folder / "operating_point.json").unlink()
    if point is not None:
        write_point(folder, **point)
    loaded = Detector.load(folder, threshold=0.3)
    assert (loaded.threshold, loaded.temperature, loaded.calibrated) == (0.3, temperature, calibrated)
    (prediction,) = loaded.predict([png(1, 3)])
    pixels = images.resize(images.decode(png(1, 3)), 32)[None]
    assert prediction.p_fake == pytest.approx(1 / (1 + np.exp(-logits_of(folder, pixels)[0] / temperature)), abs=1e-6)
    assert prediction.label == ("fake" if prediction.p_fake > 0.3 else "real")


def test_a_given_threshold_keeps_the_precision(folder):
    write_point(folder, threshold=0.5, temperature=2.0, precision="bfloat16")
    assert Detector.load(folder, threshold=0.3).precision == "bfloat16"


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_threshold_outside_0_to_1_is_refused(folder, threshold):
    with pytest.raises(UserError, match=r"threshold .* between 0 and 1"):
        Detector.load(folder, threshold=threshold)
