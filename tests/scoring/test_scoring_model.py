import json
import shutil

import pytest
from helpers import png

from dfganext.errors import UserError
from dfganext.inference.detector import Detector
from dfganext.scoring import model


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "model"


def test_the_same_weights_in_another_precision_are_another_model(folder):
    exact = model.load(str(folder))
    point = folder / "operating_point.json"
    point.write_text(json.dumps(json.loads(point.read_text()) | {"precision": "bfloat16"}))
    fast = model.load(str(folder))
    assert exact.sha256 != fast.sha256
    assert model.detector_of(fast.files).precision == "bfloat16"
    point.write_text(json.dumps(json.loads(point.read_text()) | {"precision": "float32"}))
    assert exact.sha256 == model.load(str(folder)).sha256


def test_without_an_operating_point_a_threshold_must_be_given(folder):
    (folder / "operating_point.json").unlink()
    with pytest.raises(UserError, match=r"operating_point\.json is missing: .*--threshold"):
        model.load(str(folder))
    loaded = model.load(str(folder), threshold=0.3)
    assert (loaded.threshold, loaded.temperature, loaded.calibrated) == (0.3, 1.0, False)
    assert loaded.sha256 != model.load(str(folder), threshold=0.4).sha256


@pytest.mark.parametrize("threshold", [None, 0.0, 1.0])
def test_workers_get_the_operating_point_in_use(folder, threshold):
    rule = {"max_error": 0.05, "real_up_to": 0.4, "fake_above": 0.5, "novel_above": 0.01}
    (folder / "operating_point.json").write_text(json.dumps({"threshold": 0.45, "temperature": 2.0, "decision": rule}))
    sent = model.detector_of(model.load(str(folder), threshold).files)
    assert (sent.threshold, sent.temperature) == (0.45 if threshold is None else threshold, 2.0)
    assert sent.decision.novel_above == 0.01
    assert sent.predict([png(0, 1)]) == Detector.load(folder, threshold=threshold).predict([png(0, 1)])
