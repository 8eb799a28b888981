"""Exported folders give the predictions of the detector that they were made from."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import add_rule, detector, png
from PIL import Image

from dfganext import images
from dfganext.errors import UserError
from dfganext.inference import engines, export, onnx_model
from dfganext.inference.detector import Detector
from dfganext.models.folder import ONNX_FILE


@pytest.fixture
def photos(tmp_path):
    """PNG, a JPEG with another shape and an EXIF rotation, and a transparent picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number % 2, number))
    pixels = np.random.default_rng(5).integers(0, 255, (70, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "rotated.jpg", exif=exif)
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(folder / "transparent.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path]:
    """A detector, and its ONNX export."""
    folder = tmp_path_factory.mktemp("exported")
    source = add_rule(detector(folder / "source", good=True))
    export.to_onnx(source, folder / "onnx", {})
    return source, folder / "onnx"


def predictions(folder: Path, photos: list[Path]):
    return Detector.load(folder).predict([photo.read_bytes() for photo in photos])


def by_script(folder: Path, photos: list[Path]) -> list[dict]:
    """Rows of the exported script, run where this package cannot be imported."""
    command = [sys.executable, "-I", folder / export.SCRIPT_FILE, *photos]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_copied_detector_predicts_the_same(tmp_path, photos):
    source = add_rule(detector(tmp_path / "source", good=True))
    (tmp_path / "card").write_text("a card")
    export.to_safetensors(source, tmp_path / "copy", {"README.md": tmp_path / "card"})
    assert predictions(tmp_path / "copy", photos) == predictions(source, photos)
    assert (tmp_path / "copy" / "README.md").read_text() == "a card"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["test_convnext", "test_resnet"])
@pytest.mark.parametrize("rule", [True, False])
def test_the_script_of_an_onnx_export_predicts_the_same(tmp_path, photos, architecture, rule):
    source = detector(tmp_path / "source", good=True, architecture=architecture)
    if rule:
        low, high = sorted(one.p_fake for one in predictions(source, photos))[1:3]
        add_rule(source, real_up_to=(low + high) / 2, fake_above=(low + high) / 2)
    export.to_onnx(source, tmp_path / "onnx", {})
    expected = predictions(source, photos)
    rows = by_script(tmp_path / "onnx", photos)
    assert [row["path"] for row in rows] == list(map(str, photos))
    for row, one in zip(rows, expected, strict=True):
        assert row["p_fake"] == pytest.approx(one.p_fake, abs=1e-4)
        assert (row["label"], row["decision"]) == (one.label, one.decision)
    assert {one.decision for one in expected} == ({"real", "fake"} if rule else {"unsure"})


@pytest.mark.slow
def test_an_onnx_export_predicts_the_same_for_real_photographs(exported, faces):
    source, onnx = exported
    photos = [photo for name in ("real", "fake") for photo in sorted((faces / name).iterdir())[:30]]
    expected = predictions(source, photos)
    found = [row["p_fake"] for row in by_script(onnx, photos)]
    np.testing.assert_allclose(found, [one.p_fake for one in expected], atol=1e-4)
    assert len({round(p_fake, 4) for p_fake in found}) > 10  # the model tells these images apart


@pytest.mark.slow
@pytest.mark.parametrize(("interpolation", "reencode"), [("bilinear", True), ("bicubic", False)])
def test_other_preprocessing_is_within_the_rounding_of_pixels(tmp_path, photos, interpolation, reencode):
    source = detector(tmp_path / "source", good=True)
    config = source / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"interpolation": interpolation, "reencode": reencode})
    )
    export.to_onnx(source, tmp_path / "onnx", {})
    for row, one in zip(by_script(tmp_path / "onnx", photos), predictions(source, photos), strict=True):
        assert row["p_fake"] == pytest.approx(one.p_fake, abs=5e-3)


@pytest.mark.slow
def test_a_batch_of_any_size_is_taken(exported):
    import onnxruntime

    source, onnx = exported
    session = onnxruntime.InferenceSession(onnx / ONNX_FILE, providers=["CPUExecutionProvider"])
    loaded = Detector.load(source)
    for count in (1, 5):
        pixels = np.stack([loaded.config.prepare(images.decode(png(number % 2, number))) for number in range(count)])
        p_fake, novelty = session.run(["p_fake", "novelty"], {"pixels": pixels})
        np.testing.assert_allclose(np.stack([p_fake, novelty], axis=1), loaded.scores(pixels), atol=1e-4)


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path):
    source = detector(tmp_path / "source", good=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for target in (tmp_path / "full", source / "config.json"):
        with pytest.raises(UserError, match=f"{target} exists already and is not an empty folder"):
            export.to_safetensors(source, target, {})
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    export.to_safetensors(source, tmp_path / "empty", {})
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_nothing_is_left_of_an_export_that_failed(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    source = detector(tmp_path / "source", good=True)

    def fails(*arguments, **options):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnx_model.torch.onnx, "export", fails)
    with pytest.raises(UserError, match=r"test_convnext cannot be exported to ONNX \(.*no such operator.*safetensors"):
        export.to_onnx(source, tmp_path / "onnx", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.slow
def test_a_model_with_other_predictions_is_refused(tmp_path, monkeypatch):
    source = detector(tmp_path / "source", good=True)
    monkeypatch.setattr(engines, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(UserError, match="other predictions in ONNX Runtime"):
        export.to_onnx(source, tmp_path / "onnx", {})
    assert not (tmp_path / "onnx").exists()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model.importlib.util, "find_spec", lambda name: None)
    source = detector(tmp_path / "source", good=True)
    with pytest.raises(UserError, match=r"pip install 'df-ganext\[onnx\]'"):
        export.to_onnx(source, tmp_path / "onnx", {})
    assert not (tmp_path / "onnx").exists()
