"""Predictions for folders of labelled images."""

import hashlib
from pathlib import Path

import pytest
from helpers import detector, png

from dfganext.errors import UserError
from dfganext.inference import labelled
from dfganext.inference.detector import Detector


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Detector:
    return Detector.load(detector(tmp_path_factory.mktemp("model"), good=True))


@pytest.fixture
def images(tmp_path) -> Path:
    for name, label in (
        ("real/a.png", 0),
        ("deeper/fake/b.png", 1),
        ("Fake/c.png", 1),
        ("real/bad.jpg", None),
        ("x.png", 0),
    ):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if label is None else png(label, len(name)))
    return tmp_path / "set"


@pytest.mark.parametrize("workers", [0, 2])
def test_one_row_per_labelled_image(images, loaded, workers):
    found = labelled.predict(loaded, [images], workers)
    assert list(found.images.path) == [str(images / name) for name in ("Fake/c.png", "deeper/fake/b.png", "real/a.png")]
    assert list(found.images.label) == ["fake", "fake", "real"]
    data = [Path(path).read_bytes() for path in found.images.path]
    assert list(found.images.sha256) == [hashlib.sha256(one).hexdigest() for one in data]
    assert list(found.images.p_fake) == pytest.approx([one.p_fake for one in loaded.predict(data)], abs=1e-6)
    assert set(found.images.decision) == {"unsure"}  # this model has no rule
    assert list(found.rejects.source) == [str(images / "real/bad.jpg"), str(images / "x.png")]
    assert list(found.rejects.reason) == ["not an image", "neither real nor fake"]


def test_a_folder_given_may_be_named_after_the_class(images, loaded):
    found = labelled.predict(loaded, [images / "real", images / "Fake"])
    assert sorted(found.images.label) == ["fake", "real"]


def test_no_labelled_image(tmp_path, loaded):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(png(0, 0))
    with pytest.raises(UserError, match=r"no usable image below folders named real or fake .* 1 file"):
        labelled.predict(loaded, [tmp_path / "photos"])
    with pytest.raises(UserError, match="missing is not a folder"):
        labelled.predict(loaded, [tmp_path / "missing"])
