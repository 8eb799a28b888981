import base64
import json
import os
import subprocess
import sys
import sysconfig
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import add_rule, detector, png

from dfganext.inference import pyfunc as served
from dfganext.inference.detector import Detector
from dfganext.tracking import registry

TEXT = base64.b64encode(png(0, 1)).decode()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    add_rule(detector(folder / "detector", good=True, threshold=0.4), real_up_to=0.3, fake_above=0.6, novel_above=0.01)
    point = folder / "detector" / "operating_point.json"
    trained_on = pd.DataFrame({"sha256": ["0" * 64]})
    registry.save_model(folder / "model", registry.Contents(folder / "detector", point, trained_on))
    return folder


@pytest.mark.parametrize(
    "text", [TEXT, f"data:image/png;base64,{TEXT}", "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))]
)
def test_base64_with_and_without_wrapping(text):
    assert served.image_bytes(text) == png(0, 1)


@pytest.mark.parametrize("text", ["héllo", "abc", "a*b=", "data:image/png,abcd", None, 3])
def test_text_that_is_not_base64_is_refused(text):
    with pytest.raises(ValueError, match="base64"):
        served.image_bytes(text)


def test_one_thread_loads_the_model_and_predicts(saved, monkeypatch):
    threads = []

    def recorded(function):
        return lambda *arguments: threads.append(threading.get_ident()) or function(*arguments)

    monkeypatch.setattr(Detector, "load", recorded(Detector.load))
    monkeypatch.setattr(Detector, "scores", recorded(Detector.scores))
    model = served.FakeFaceDetector()
    model.load_context(SimpleNamespace(artifacts={"detector": saved / "detector"}))
    assert [record["label"] for record in model.predict(None, pd.DataFrame({"image": [TEXT]}))] != [None]
    assert len(threads) == 2 and len({*threads, threading.get_ident()}) == 2


CLEAN = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])  # packages, without what their .pth files add: an editable install of this one
assert importlib.util.find_spec("dfganext") is None
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[2])
import dfganext
assert dfganext.__file__.startswith(sys.argv[2]), dfganext.__file__
images = pandas.DataFrame({"image": json.load(sys.stdin)})
params = {}, {"explain": True}, {"stability": True}
print("records", json.dumps([model.predict(images, params=one) for one in params]))
"""


@pytest.mark.slow
def test_it_loads_in_another_folder_and_process_without_the_package(saved, tmp_path):
    assert not list((saved / "model").rglob("__pycache__"))
    assert not [path for path in (saved / "model").rglob("*") if path.suffix in (".pkl", ".pickle", ".pth", ".pt")]
    moved = (saved / "model").rename(tmp_path / "moved")
    texts = [TEXT, "no base64!", base64.b64encode(b"no image").decode(), None, *[TEXT] * served.BATCH]
    done = subprocess.run(
        [sys.executable, "-S", "-c", CLEAN, sysconfig.get_path("purelib"), str(moved)],
        input=json.dumps(texts), cwd=tmp_path, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    moved.rename(saved / "model")
    assert done.returncode == 0, done.stderr
    plain, explained, checked = json.loads(done.stdout.partition("records ")[2])
    one = Detector.load(saved / "detector")
    (expected,) = one.predict([png(0, 1)], stability=True)
    for records in (plain, explained, checked):
        assert len(records) == len(texts)
        for record in (records[0], *records[4:]):
            assert record["label"] == expected.label
            assert record["p_fake"] == pytest.approx(expected.p_fake, abs=1e-5)
            assert record["threshold"] == 0.4
            assert (record["decision"], record["reason"]) == (expected.decision, expected.reason)
            assert "error" not in record
        for record, error in zip(records[1:4], ("not base64", "not an image", "not a text"), strict=True):
            assert record["label"] is record["p_fake"] is record["decision"] is record["reason"] is None
            assert record["error"].startswith(error)
            assert "heatmap" not in record
    assert "heatmap" not in plain[0] and "stability" not in plain[0]
    stability = checked[0]["stability"]
    assert stability["changes"] == list(expected.changes)
    for name, copy in expected.stability.items():
        assert stability[name] == {"decision": copy.decision, "p_fake": pytest.approx(copy.p_fake, abs=1e-5)}
    assert base64.b64decode(explained[0]["heatmap"]).startswith(b"\x89PNG")


def test_requirements_are_the_installed_versions(saved):
    lines = Path(saved / "model" / "requirements.txt").read_text().split()
    names, versions = zip(*(line.split("==") for line in lines), strict=True)
    assert list(names) == list(registry.REQUIREMENTS)
    assert list(versions) == [metadata.version(name).partition("+")[0] for name in names]
