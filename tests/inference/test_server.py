"""The real server, started as documented, with real requests."""

import base64
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from helpers import add_rule, detector, enter_root, faces, free_port, png, serving

from dfganext import images
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

ROOT = Path(__file__).resolve().parent.parent.parent

FIELDS = {"label", "p_fake", "threshold", "decision", "reason"}
"""Of each record."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with a champion, which was made of the folder `detector`."""
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        enter_root(root, patch)
        faces(root, validation=4)
        folder = add_rule(detector(root / "detector", good=True, threshold=0.45))
        client, experiment = store.connect()
        run_id = client.create_run(experiment).info.run_id
        data = promotion.Data.read(root / "split.csv", root / "manifest.csv", root / "raw", 8)
        settings = Promote("roc_auc", 2, ("test_convnext",), "float32", "torch")
        promotion.promote(folder, folder / "operating_point.json", data, settings, run_id)
    return root


@pytest.fixture(scope="module")
def version(root):
    """The folder of the champion's files."""
    words = ["mlflow", "artifacts", "download", "--artifact-uri", "models:/df-ganext@champion", "--dst-path", "version"]
    subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], cwd=root, check=True)
    return root / "version"


@pytest.fixture(scope="module", params=["here", "elsewhere"])
def server(root, request, tmp_path_factory):
    """The folder of a detector, and the address of `mlflow models serve`: in its root, as `make serve` does; or elsewhere, as in
    the container: from the files of the version alone, in an environment with nothing but their requirements."""
    port = free_port()
    if request.param == "here":
        served, programs = root, Path(sys.executable).parent
        words = f"mlflow models serve -m models:/df-ganext@champion --env-manager local -p {port}".split()
    else:
        served, version = tmp_path_factory.mktemp("elsewhere"), request.getfixturevalue("version")
        programs = environment_of(version / "requirements.txt", served / "environment")
        words = instruction("CMD", port, version)
    with serving(words, port, served, programs):
        yield root / "detector", f"http://127.0.0.1:{port}"


def instruction(name, port, version=""):
    """The words of an instruction of the Dockerfile, for another port, on this machine only, and for a version's folder."""
    words = json.loads(re.search(rf"^{name}[^\[]*(\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1])
    changes = {"5001": str(port), "0.0.0.0": "127.0.0.1", "/version": str(version)}
    return [re.sub("|".join(changes), lambda found: changes[found[0]], word) for word in words]


def environment_of(requirements, folder):
    """The programs of a new virtual environment; skips the test where packages cannot be downloaded."""
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    command = [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", "-r", requirements]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if "Failed to fetch" in done.stderr or "error sending request" in done.stderr:
        pytest.skip(f"needs a package registry: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


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


@pytest.mark.parametrize(
    "body",
    [{"dataframe_records": [{"picture": TEXTS[0]}]}, {"images": TEXTS}, []],
    ids=["no column", "no form", "a list"],
)
def test_another_body_is_refused_as_json(server, body):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server[1], body)
    assert refused.value.code == 400
    answer = json.load(refused.value)
    assert answer["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE") and answer["message"]


def test_a_body_of_several_megabytes(server):
    pixels = np.random.default_rng(0).integers(0, 256, (1600, 1200, 3), dtype=np.uint8)
    large = images.to_jpeg(pixels, 95)
    text = base64.b64encode(large).decode()
    assert len(text) > 2e6
    folder, address = server
    records = post(address, {"dataframe_records": [{"image": text}] * 3})
    (expected,) = Detector.load(folder).predict([large])
    assert [record["p_fake"] for record in records] == pytest.approx([expected.p_fake] * 3, abs=1e-5)


def test_health_and_version(server):
    health = instruction("HEALTHCHECK", server[1].rpartition(":")[2])
    assert subprocess.run([sys.executable, *health[1:]]).returncode == 0
    assert (
        subprocess.run(
            [sys.executable, *instruction("HEALTHCHECK", free_port())[1:]], stderr=subprocess.DEVNULL
        ).returncode
        == 1
    )
    assert urllib.request.urlopen(f"{server[1]}/version", timeout=5).read().decode() == metadata.version("mlflow")
