"""Served images with each engine, against the same weights in a model as an expert writes it for MLflow, on the same server.

All get the same request, a JPEG of 512 pixels in base64, and decode, resize and normalise it, in the same precision and with the
same number of threads. The rival (`benchmarks/served_rival.py`) computes with PyTorch, one request at a time: with several
clients, this is faster than forward passes that share the cores. Ours computes all waiting requests as one batch.

The limit of a request is the forward pass alone of the engine that is fastest in its precision. The table also has what else a
request needs: decoding and resizing, and an answer of MLflow's server to a request without a usable image.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import pictures
from benchmarks.harness import Goal, Table, alternate, bursts, plain_environment
from dfganext import images
from dfganext.inference import onnx_model
from dfganext.inference.detector import Detector
from dfganext.models import classifier
from dfganext.models.folder import ONNX_FILE, WEIGHTS_FILE
from dfganext.tracking import registry, store

SOURCE, SIZE = 512, 256
"""Pixels per side: of the JPEG, and of the network's input."""

KINDS = (
    ("torch", "float32"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "bfloat16"),
)
"""promote.engine and promote.precision."""

PRECISIONS = ("float32", "bfloat16")
TURNS, BURST = 6, 6
"""Requests per turn, one after another; the first one, to an idle server, is not counted."""

CLIENTS, CLIENT_REQUESTS, ROUNDS = 8, 4, 3
SAME = 1e-3
"""Largest allowed difference between the two probabilities."""

AGAINST = "a short `mlflow.pyfunc` model, the same JPEG"


def main() -> None:
    table = Table("serve")
    compare(table, "convnext_tiny", SIZE, TURNS, BURST, CLIENT_REQUESTS, ROUNDS)
    table.write("mlflow", "onnxruntime", "openvino")


def compare(
    table: Table, architecture: str, size: int, turns: int, burst: int, client_requests: int, rounds: int
) -> None:
    """Serve our model with each engine, and the rival's, and time single requests and requests of many clients."""
    data = pictures.encoded(SOURCE, 0, "JPEG")
    text = base64.b64encode(data).decode()
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text]]}}).encode()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        model, config = classifier.build(architecture, "ce", size, seed=0)
        detectors = save(folder, model, config)
        senders = {
            name: partial(post, stack.enter_context(served(folder / name.replace(" ", "-"))))
            for name in [*detectors, *(f"rival {precision}" for precision in PRECISIONS)]
        }
        requests = {name: partial(send, body) for name, send in senders.items()}
        pixels = np.array(images.prepare(images.decode(data), size))[None]
        forwards = {name: partial(detector.scores, pixels) for name, detector in detectors.items()}
        one_at_a_time(table, requests, forwards, turns, burst)
        detector, unusable = detectors["torch float32"], body.replace(text.encode(), b"none")
        rest: dict[str, Callable[[], object]] = {
            "decoding and resizing": lambda: detector.prepare(data),
            "a request without a usable image": partial(senders["torch float32"], unusable),
        }
        for what, seconds in alternate(rest, turns * burst).items():
            table.add("one image", what, "ms", [1e3 * one for one in seconds])
        many_at_once(table, requests, client_requests, rounds)


def save(folder: Path, model: torch.nn.Module, config: classifier.ClassifierConfig) -> dict[str, Detector]:
    """The same weights as MLflow models, ours with each engine and the rival's; returns our detectors by the models' names."""
    classifier.save(folder / "detector", model.state_dict(), config)
    mlflow = store.import_mlflow()  # with its telemetry off
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    detectors = {}
    for engine, precision in KINDS:
        name = f"{engine} {precision}"
        beside = folder / f"point {name}"
        beside.mkdir()
        point = beside / "operating_point.json"
        values = {"threshold": 0.5, "temperature": 1.0, "precision": precision}
        point.write_text(json.dumps(values))
        if engine != "torch":
            onnx_model.write(Detector.load(folder / "detector", point), beside / ONNX_FILE, "choose another", engine)
            point.write_text(json.dumps(values | {"engine": engine}))
        contents = registry.Contents(folder / "detector", point, trained_on=pd.DataFrame({"sha256": []}))
        registry.save_model(folder / name.replace(" ", "-"), contents)
        detectors[name] = Detector.load(folder / "detector", point)
    for precision in PRECISIONS:
        facts = {"architecture": config.architecture, "outputs": classifier.outputs_of(config.loss)}
        facts |= {"size": config.size, "mean": config.mean, "std": config.std, "precision": precision}
        described = folder / f"rival-{precision}.json"
        described.write_text(json.dumps(facts))
        mlflow.pyfunc.save_model(
            str(folder / f"rival-{precision}"),
            python_model=str(Path(__file__).with_name("served_rival.py")),
            artifacts={"weights": str(folder / "detector" / WEIGHTS_FILE), "config": str(described)},
            signature=ModelSignature(inputs=Schema([ColSpec("string", "image")])),
            pip_requirements=["torch", "timm"],
        )
    return detectors


def one_at_a_time(
    table: Table,
    requests: Mapping[str, Callable[[], list]],
    forwards: Mapping[str, Callable[[], np.ndarray]],
    turns: int,
    burst: int,
) -> None:
    """Time of a request, and of its forward pass alone; all models must give the same probability."""
    contenders: dict[str, Callable[[], object]] = dict(requests)
    contenders |= {f"forward {name}": forward for name, forward in forwards.items()}
    seconds = bursts(contenders, turns, burst - 1)
    milliseconds = {name: [1e3 * one for one in times] for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    exact = requests["torch float32"]()[0]["p_fake"]
    for engine, precision in KINDS:
        name, rival = f"{engine} {precision}", f"rival {precision}"
        case = f"one image, {engine}, {precision}"
        limit = min(medians[f"forward {other} {precision}"] for other, same in KINDS if same == precision)
        goal = Goal("share_of_limit", least=1 / 1.15)
        table.add(case, "time", "ms", milliseconds[name], milliseconds[rival], limit, goal, against=AGAINST)
        over = medians[name] - medians[f"forward {name}"]
        table.add(case, "over the forward pass", "ms", [over], goal=Goal("ours", most=15))
        found, other = (requests[which]()[0]["p_fake"] for which in (name, rival))
        assert abs(found - other) <= SAME, f"{name}: p_fake {found} and the rival's {other} differ"
        table.add(case, "difference of p_fake from float32", "1", [abs(found - exact)], goal=Goal("ours", most=SAME))


def many_at_once(table: Table, requests: Mapping[str, Callable[[], list]], client_requests: int, rounds: int) -> None:
    """Images per second, with clients that each send a request as soon as the last one is answered."""
    count = CLIENTS * client_requests

    def crowd(request: Callable[[], list]) -> None:
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda _: request(), range(count)))

    seconds = alternate({name: partial(crowd, request) for name, request in requests.items()}, rounds)
    rates = {name: [count / one for one in values] for name, values in seconds.items()}
    for engine, precision in KINDS:
        table.add(
            f"{CLIENTS} clients, {engine}, {precision}",
            "rate",
            "images per second",
            rates[f"{engine} {precision}"],
            rates[f"rival {precision}"],
            goal=Goal("ratio", least=1.5),
            better="higher",
            against=AGAINST,
        )


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of `mlflow models serve` with a model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"mlflow models serve -m {model} --env-manager local --host 127.0.0.1 -p {port}".split()
    with model.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(words, env=plain_environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        while not is_up(address):
            if process.poll() is not None:
                raise RuntimeError(model.with_suffix(".log").read_text())
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def post(address: str, body: bytes) -> list[dict]:
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["predictions"]


if __name__ == "__main__":
    main()
