"""Served images of 256 pixels, against the same weights logged with `mlflow.pytorch` and served by the same server.

A model of MLflow's PyTorch flavour takes tensors, so its clients decode, resize and normalise, and send numbers; ours send the file.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import pictures
from benchmarks.harness import Goal, Table, alternate, plain_environment
from dfganext import images, registry, tracking
from dfganext.models import classifier

SIZE = 256
TURNS, BURST = 6, 6
"""In a turn, requests follow one another; the first finds a server that has slept, and does not count."""

CLIENTS, CLIENT_REQUESTS, ROUNDS = 8, 4, 3


def main() -> None:
    data = pictures.encoded(SIZE, 0, "PNG")
    ours = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(data).decode()]]}}).encode()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        model, config = classifier.build("convnext_tiny", "ce", SIZE, seed=0)
        model.eval()
        pixels = torch.from_numpy(images.prepare(images.decode(data), SIZE))[None]
        theirs = json.dumps({"inputs": classifier.preprocess(pixels, config).tolist()}).encode()
        save(folder, model, config)
        addresses = {name: stack.enter_context(served(folder / name)) for name in ("float32", "bfloat16", "rival")}
        bodies = {"float32": ours, "bfloat16": ours, "rival": theirs}
        table = Table("serve")
        one_at_a_time(table, addresses, bodies, model, config, pixels)
        many_at_once(table, addresses, bodies)
        table.write("mlflow")


def save(folder: Path, model: torch.nn.Module, config: classifier.ClassifierConfig) -> None:
    """The same weights as three MLflow models: ours in two precisions, and the rival's."""
    classifier.save(folder / "detector", model.state_dict(), config)
    for precision in ("float32", "bfloat16"):
        point = folder / f"{precision}.json"
        point.write_text(json.dumps({"threshold": 0.5, "temperature": 1.0, "precision": precision}))
        registry.save_model(folder / precision, folder / "detector", point)
    tracking.import_mlflow()  # with its telemetry off
    from mlflow import pytorch as flavour
    from mlflow.models import infer_signature

    example = np.zeros((1, 3, SIZE, SIZE), np.float32)
    flavour.save_model(
        model,
        str(folder / "rival"),
        signature=infer_signature(example, np.zeros((1, 2), np.float32)),
        input_example=example,
        pip_requirements=["torch", "timm"],
    )


def one_at_a_time(
    table: Table,
    addresses: dict[str, str],
    bodies: dict[str, bytes],
    model: torch.nn.Module,
    config: classifier.ClassifierConfig,
    pixels: torch.Tensor,
) -> None:
    """Time of a request, and of the forward pass that is in it."""

    @torch.inference_mode()
    def forward(precision: str) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(classifier.preprocess(pixels, config)).float()

    answers = {name: post(addresses[name], bodies[name]) for name in addresses}
    logits = np.array(answers.pop("rival"))[0]
    expected = 1 / (1 + np.exp(logits[0] - logits[1]))
    contenders: dict[str, Callable[[], object]] = {
        name: partial(post, addresses[name], bodies[name]) for name in addresses
    }
    contenders |= {f"forward {name}": partial(forward, name) for name in answers}
    milliseconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, contender in contenders.items():
            seconds = alternate({name: contender}, BURST - 1)[name]
            milliseconds[name] += [1e3 * one for one in seconds]
    for name, answer in answers.items():
        case, bare = f"one image, {name}", statistics.median(milliseconds[f"forward {name}"])
        table.add(case, "time", "ms", milliseconds[name], milliseconds["rival"], bare, Goal("ratio", least=1.5))
        over = statistics.median(milliseconds[name]) - bare
        table.add(case, "over the forward pass", "ms", [over], goal=Goal("ours", most=15))
        difference = abs(answer[0]["p_fake"] - expected)
        table.add(case, "difference of p_fake", "1", [difference], goal=Goal("ours", most=1e-3))


def many_at_once(table: Table, addresses: dict[str, str], bodies: dict[str, bytes]) -> None:
    """Images a second with clients that each send the next request when the last one is answered."""

    def crowd(name: str) -> None:
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda _: post(addresses[name], bodies[name]), range(CLIENTS * CLIENT_REQUESTS)))

    seconds = alternate({name: partial(crowd, name) for name in addresses}, ROUNDS)
    rates = {name: [CLIENTS * CLIENT_REQUESTS / one for one in values] for name, values in seconds.items()}
    for name in ("float32", "bfloat16"):
        goal = Goal("ratio", least=2)
        table.add(
            f"{CLIENTS} clients, {name}",
            "rate",
            "images a second",
            rates[name],
            rates["rival"],
            goal=goal,
            better="higher",
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


def post(address: str, body: bytes) -> list:
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["predictions"]


if __name__ == "__main__":
    main()
