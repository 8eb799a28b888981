"""The real server under many mixed requests, hostile clients and a stop: right answers, flat memory, nothing lost.

`make stress` sends 10,000 requests and writes results/serving.csv; `make stress-short` sends a few hundred.
"""

import base64
import csv
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import add_rule, answers, free_port, png, serving

from dfganext import images
from dfganext.inference.detector import Detector
from dfganext.models import classifier
from dfganext.tracking import registry
from tests.hostile import corpus

pytestmark = [pytest.mark.slow, pytest.mark.stress]

CLIENTS = 32
MAX_MIB = 1536
RESULTS = Path(__file__).with_name("results") / "serving.csv"

KINDS = {"one": 50, "several": 10, "broken": 12, "large": 3, "explain": 9, "stability": 8, "no image": 5, "no JSON": 3}
"""Kinds of requests, and how often of 100 each is sent."""


@dataclass
class Server:
    process: subprocess.Popen
    port: int

    def post(self, body: bytes) -> tuple[int, dict]:
        """Status and answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def is_up(self) -> bool:
        return answers(f"http://127.0.0.1:{self.port}/ping")

    def mib(self) -> float:
        """Resident memory of the process that computes."""
        own = psutil.Process(self.process.pid)
        return max(one.memory_info().rss for one in (own, *own.children(recursive=True))) / 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a detector, ConvNeXt-T at 96 pixels with random weights, and of the MLflow model made of it."""
    folder = tmp_path_factory.mktemp("stress") / "detector"
    network, config = classifier.build("convnext_tiny", "ce", 96, seed=1)
    classifier.save(folder, network.state_dict(), config)
    (folder / "operating_point.json").write_text('{"threshold": 0.5, "temperature": 1.0}')
    add_rule(folder)
    registry.save_model(
        folder.parent / "served",
        registry.Contents(folder, folder / "operating_point.json", pd.DataFrame({"sha256": []})),
    )
    return folder, folder.parent / "served"


@pytest.fixture(scope="module")
def start(model, tmp_path_factory) -> Callable[[], AbstractContextManager[Server]]:
    """A function that serves the model as `make serve` does."""

    @contextmanager
    def started() -> Iterator[Server]:
        port = free_port()
        words = f"mlflow models serve -m {model[1]} --env-manager local --host 127.0.0.1 -p {port}".split()
        with serving(words, port, tmp_path_factory.mktemp("server"), MALLOC_ARENA_MAX="1") as process:
            yield Server(process, port)

    return started


@pytest.fixture(scope="module")
def server(start) -> Iterator[Server]:
    with start() as started:
        yield started


@pytest.fixture(scope="module")
def requests(model) -> "Requests":
    return Requests(model[0])


class Requests:
    """Bodies of random requests and what must come back. good: images, and expected, their p_fake."""

    def __init__(self, folder: Path) -> None:
        self.good = [png(number % 2, number) for number in range(40)]
        self.expected = [one.p_fake for one in Detector.load(folder).predict(self.good)]
        self.broken = [data for _, data in corpus.every_mutation(25)]
        noise = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
        self.large = images.to_jpeg(noise, 90)

    def make(self, number: int) -> tuple[str, bytes, list[float] | None]:
        """Kind, body and, of images that are good, p_fake. The same for the same number."""
        rng = random.Random(number)
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        if kind == "no JSON":
            return kind, rng.choice([b"", b"{", b"[1, 2", b"\xff\xfe", b"image=1"]), None
        if kind == "no image":
            return (
                kind,
                json.dumps(rng.choice([{"images": [1]}, [], {"dataframe_records": [{"picture": "x"}]}])).encode(),
                None,
            )
        rows = [rng.randrange(len(self.good)) for _ in range(rng.randint(2, 16) if kind == "several" else 1)]
        data, expected = [self.good[row] for row in rows], [self.expected[row] for row in rows]
        if kind == "broken":
            data, expected = [rng.choice(self.broken)], None
        if kind == "large":
            data, expected = [self.large], None
        records = [{"image": base64.b64encode(one).decode()} for one in data]
        params = {"params": {kind: True}} if kind in ("explain", "stability") else {}
        return kind, json.dumps({"dataframe_records": records, **params}).encode(), expected


def check(kind: str, expected: list[float] | None, status: int, answer: dict) -> None:
    if kind in ("no JSON", "no image"):
        assert status == 400 and answer["message"], (kind, status, answer)
        return
    assert status == 200, (kind, status, answer)
    records = answer["predictions"]
    for record in records:
        assert ("error" in record) == (record["label"] is None)
    if expected is not None:
        assert [record["p_fake"] for record in records] == pytest.approx(expected, abs=1e-5)
    assert all(("heatmap" in record) == (kind == "explain") for record in records)


@pytest.mark.timeout(7200)
def test_many_mixed_requests(server, requests, stress):
    count = 10_000 if stress else 400
    seconds: list[float] = []
    memory = [server.mib()]
    kinds: Counter[str] = Counter()

    def send(number: int) -> None:
        kind, body, expected = requests.make(number)
        start = time.monotonic()
        check(kind, expected, *server.post(body))
        seconds.append(time.monotonic() - start)
        kinds[kind] += 1
        if len(seconds) % (count // 20) == 0:
            memory.append(server.mib())

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(send, range(count)))
    assert sum(kinds.values()) == count and set(kinds) == set(KINDS)
    settled = memory[4:]  # after a fifth of the requests
    assert max(settled) < MAX_MIB and max(settled) - min(settled) < 200, memory
    if stress:
        percentiles = {f"p{share} (s)": float(np.percentile(seconds, share)) for share in (50, 99)}
        figures = {"requests": count, "clients": CLIENTS, **percentiles, "MiB at the start": memory[0]}
        figures |= {"MiB, largest": max(memory), "MiB, after a fifth": settled[0], "MiB, at the end": memory[-1]}
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(
                [("what", "value"), *((name, f"{value:.6g}") for name, value in figures.items())]
            )


def test_slow_and_vanishing_clients_block_nobody(server, requests):
    body = json.dumps({"dataframe_records": [{"image": base64.b64encode(requests.good[0]).decode()}]}).encode()
    head = f"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(64)]
    for number, connection in enumerate(slow):
        connection.sendall(head + body[: number * 10])
    for connection in slow[::2]:
        connection.close()
    for number in range(20):
        vanished = socket.create_connection(("127.0.0.1", server.port))
        vanished.sendall(head + body)  # a whole request, whose answer nobody takes
        vanished.close()
        start = time.monotonic()
        check("one", requests.expected[:1], *server.post(body))
        assert time.monotonic() - start < 10, number
    for connection in slow[1::2]:
        connection.close()


def test_nested_json_does_not_end_the_server(server):
    """MLflow's server answers 500 where Python's parser gives up; docs/promotion-and-serving.md says so."""
    deep = b'{"dataframe_records": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/invocations", deep, {"Content-Type": "application/json"})
    assert connection.getresponse().status in (400, 500)
    assert server.is_up()


def test_a_stop_finishes_the_request_in_flight(start, requests):
    records = [{"image": base64.b64encode(one).decode()} for one in requests.good]
    body = json.dumps({"dataframe_records": records, "params": {"stability": True}}).encode()
    with start() as server:
        server.post(body)
        received = []
        client = threading.Thread(target=lambda: received.append(server.post(body)))
        client.start()
        time.sleep(0.5)
        os.killpg(server.process.pid, signal.SIGTERM)
        client.join(60)
        assert [status for status, _ in received] == [200] and len(received[0][1]["predictions"]) == len(records)
        assert server.process.wait(60) is not None and not server.is_up()
