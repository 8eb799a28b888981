"""The real server, started as documented, with real requests."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers import add_rule, detector, enter_root, faces, free_port, png

from dfganext.inference.detector import Detector
from dfganext.settings import Promote
from dfganext.tracking import promotion, store

pytestmark = pytest.mark.slow

PICTURES = [png(0, 1), png(1, 1)]
TEXTS = [base64.b64encode(data).decode() for data in (PICTURES[0], b"no image", PICTURES[1], PICTURES[0][:300])]
TEXTS.append("not base64!")
REQUESTS = {
    "dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]},
    "dataframe_records": [{"image": text} for text in TEXTS],
    "inputs": {"image": TEXTS},
    "instances": [{"image": text} for text in TEXTS],
}

FIELDS = {"label", "p_fake", "threshold", "decision", "reason"}
"""Of each record."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A root with a champion, its folder, and the address of `mlflow models serve` run in it."""
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        enter_root(root, patch)
        faces(root, validation=4)
        folder = add_rule(detector(root / "detector", good=True, threshold=0.45))
        client, experiment = store.connect()
        run_id = client.create_run(experiment).info.run_id
        data = promotion.Data.read(root / "split.csv", root / "manifest.csv", root / "raw", 8)
        settings = Promote("roc_auc", 2, ("test_convnext",), "float32")
        promotion.promote(folder, folder / "operating_point.json", data, settings, run_id)
    port = free_port()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = f"mlflow models serve -m models:/df-ganext@champion --env-manager local -p {port}".split()
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 180
        while not answers(f"{address}/ping"):
            assert process.poll() is None and time.monotonic() < until, (root / "server.log").read_text()
            time.sleep(0.5)
        yield folder, address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def post(address, body):
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=60))["predictions"]


@pytest.mark.parametrize("form", REQUESTS)
@pytest.mark.parametrize("explain", [None, False, True])
def test_every_form_with_good_and_broken_images(server, form, explain):
    folder, address = server
    params = {} if explain is None else {"params": {"explain": explain}}
    records = post(address, {form: REQUESTS[form], **params})
    assert len(records) == len(TEXTS)
    expected = Detector.load(folder).predict(PICTURES)
    for record, prediction in zip((records[0], records[2]), expected, strict=True):
        assert record["label"] == prediction.label
        assert record["p_fake"] == pytest.approx(prediction.p_fake, abs=1e-5)
        assert record["threshold"] == 0.45
        assert (record["decision"], record["reason"]) == (prediction.decision, prediction.reason)
        assert record.keys() == FIELDS | ({"heatmap"} if explain else set())
        if explain:
            assert base64.b64decode(record["heatmap"]).startswith(b"\x89PNG")
    for record in (records[1], records[3], records[4]):
        assert record["label"] is record["p_fake"] is None
        assert record["threshold"] == 0.45
        assert record["error"]
        assert "heatmap" not in record


def test_stability(server):
    folder, address = server
    body = {"dataframe_records": REQUESTS["dataframe_records"], "params": {"stability": True}}
    records = post(address, body)
    expected = Detector.load(folder).predict(PICTURES, stability=True)
    for record, prediction in zip((records[0], records[2]), expected, strict=True):
        assert record.keys() == FIELDS | {"stability"}
        assert record["stability"]["changes"] == list(prediction.changes)
        for name, copy in prediction.stability.items():
            assert record["stability"][name]["p_fake"] == pytest.approx(copy.p_fake, abs=1e-5)
    assert "stability" not in records[1]


@pytest.mark.parametrize("form", REQUESTS)
def test_a_single_image(server, form):
    one = {"columns": ["image"], "data": [[TEXTS[0]]]} if form == "dataframe_split" else [{"image": TEXTS[0]}]
    folder, address = server
    (record,) = post(address, {form: {"image": [TEXTS[0]]} if form == "inputs" else one})
    (expected,) = Detector.load(folder).predict(PICTURES[:1])
    assert (record["label"], record["threshold"]) == (expected.label, expected.threshold)
    assert record["p_fake"] == pytest.approx(expected.p_fake, abs=1e-5)


def test_a_request_without_the_column_is_refused(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server[1], {"dataframe_records": [{"picture": TEXTS[0]}]})
    assert refused.value.code == 400
