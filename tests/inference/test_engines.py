"""ONNX Runtime and OpenVINO compute what PyTorch computes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import add_rule, detector, png

from dfganext.errors import UserError
from dfganext.inference import engines, export, onnx_model
from dfganext.inference.detector import Detector
from dfganext.models.folder import ONNX_FILE
from dfganext.scoring import model as scoring_model
from dfganext.training import compute

NAMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module", params=["test_convnext", "test_resnet"])
def exported(tmp_path_factory, request):
    """The folder of a detector with a rule and an ONNX model; test_resnet has batch normalisation."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    add_rule(detector(folder, good=True, architecture=request.param), novel_above=0.01)
    onnx_model.write(Detector.load(folder), folder / ONNX_FILE, "advice")
    return folder


@pytest.fixture(params=NAMES)
def folder(exported, tmp_path, request):
    """A detector that uses an engine."""
    shutil.copytree(exported, tmp_path / "model")
    use(tmp_path / "model", engine=request.param)
    return tmp_path / "model"


def use(folder, **values):
    point = folder / "operating_point.json"
    point.write_text(json.dumps(json.loads(point.read_text()) | values))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, engines.BATCH + 2])
def test_scores_are_those_of_pytorch(exported, folder, count):
    with_engine, plain = Detector.load(folder), Detector.load(exported)
    assert (with_engine.engine.name, plain.engine) == (
        json.loads((folder / "operating_point.json").read_text())["engine"],
        None,
    )
    pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    found, expected = with_engine.scores(pixels), plain.scores(pixels)
    assert found.shape == (count, 2) and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert expected[:, 1].max() > 0.001  # novelty is not 0
    np.testing.assert_array_equal(with_engine.probabilities(pixels), found[:, 0])
    not_contiguous = np.flip(pixels, axis=2)
    np.testing.assert_allclose(with_engine.scores(not_contiguous), plain.scores(not_contiguous), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_decisions_stability_and_heat_maps_are_those_of_pytorch(exported, folder):
    data = [png(number % 2, number) for number in range(4)] + [b"no image"]
    found = Detector.load(folder).predict(data, explain=True, stability=True)
    expected = Detector.load(exported).predict(data, explain=True, stability=True)
    for one, other in zip(found, expected, strict=True):
        assert (one.decision, one.label, one.heatmap, one.error) == (
            other.decision,
            other.label,
            other.heatmap,
            other.error,
        )
        assert list(one.stability or {}) == list(other.stability or {})
    assert len({one.decision for one in expected}) > 1


@pytest.mark.slow
def test_openvino_computes_in_bfloat16_where_the_processor_does(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    use(folder, engine="openvino", precision="bfloat16")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    shift = np.abs(Detector.load(folder).scores(pixels) - Detector.load(exported).scores(pixels)).max()
    native = compute.precision("auto", torch.device("cpu")) == torch.bfloat16
    assert (1e-6 < shift < 1e-2) if native else shift < 1e-5


@pytest.mark.slow
def test_other_places_get_the_engine_with_the_model(folder, tmp_path):
    """Workers of `dfganext score`, and an exported folder."""
    data = [png(0, 1), png(1, 2)]
    loaded = Detector.load(folder)
    sent = scoring_model.load(str(folder))
    worker = scoring_model.detector_of(sent.files)
    export.to_safetensors(folder, tmp_path / "copy", {})
    copy = Detector.load(tmp_path / "copy")
    assert worker.engine.name == copy.engine.name == loaded.engine.name
    assert worker.predict(data) == copy.predict(data) == loaded.predict(data)
    use(folder, engine="torch")
    assert scoring_model.load(str(folder)).sha256 != sent.sha256


def test_a_gpu_computes_without_an_engine(tmp_path, monkeypatch):
    """Engines are for CPUs: the folder has no ONNX model, and none is read."""
    folder = detector(tmp_path / "model", good=True)
    use(folder, engine="onnxruntime")
    assert Detector.load(folder, device=torch.device("meta")).engine is None
    with pytest.raises(UserError, match=r"ONNX Runtime cannot read .*model\.onnx .*promote the model again"):
        Detector.load(folder, device=torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_model_is_one_sentence(tmp_path, name):
    file = tmp_path / ONNX_FILE
    for data in (b"", b"no model" * 100):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"(ONNX Runtime|OpenVINO) cannot read .*model\.onnx"):
            engines.load(name, file)


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_an_engine_that_is_not_installed_is_named(tmp_path, monkeypatch, name, extra):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    folder = detector(tmp_path / "model", good=True)
    use(folder, engine=name)
    with pytest.raises(UserError, match=rf"is not installed: pip install 'df-ganext\[{extra}\]'"):
        Detector.load(folder)


def test_openvino_sends_nothing_to_its_authors(tmp_path):
    """Its import would send an event, without asking."""
    (tmp_path / "made").write_bytes(b"no model")
    code = (
        "import sys\nfrom dfganext.errors import UserError\nfrom dfganext.inference import engines\nfrom pathlib import Path\n"
        f"try:\n    engines.load('openvino', Path({str(tmp_path / 'made')!r}))\nexcept UserError: pass\n"
        "assert 'openvino' in sys.modules\n"
        "print(sorted(name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and module))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


SIGNAL = """
import gc, signal, subprocess, sys
from pathlib import Path
from dfganext.inference import engines

signal.signal(signal.SIGCHLD, lambda *_: None)  # as PyTorch's loader of batches does
first, second = (engines.load("openvino", Path(sys.argv[1])) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
subprocess.run([sys.executable, "-c", "pass"], check=True)
"""


@pytest.mark.slow
def test_a_signal_after_openvino_was_used_ends_nothing(exported):
    """On processors with AMX, OpenVINO sets the stack of signal handlers."""
    done = subprocess.run([sys.executable, "-c", SIGNAL, exported / ONNX_FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
