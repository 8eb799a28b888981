"""`dfganext score` as users run it."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import detector, free_port, png

from dfganext import cli, scoring
from dfganext.data.discovery import Found, printable, read
from dfganext.inference.detector import Detector
from dfganext.scoring import model, recovery, stores
from dfganext.scoring.cluster import Cluster
from dfganext.scoring.parts import PART_IMAGES, Part, PartResult
from dfganext.scoring.rows import RECORD, SCHEMA
from dfganext.scoring.stores import Listing

pytestmark = pytest.mark.slow

MIB = 2**20

MANY = 12_000
"""Images of the runs that are killed: so many parts of a thousand."""


def rows(out):
    return pd.read_parquet(out).sort_values("path", ignore_index=True)


def score(*words):
    return cli.main(["score", *words, "--workers", "1"])  # each worker imports PyTorch


def numbers(out):
    """The numbers of the summary that is printed: scored now, of all, those of them again, before, unreadable."""
    (line,) = [line for line in out.splitlines() if "Rows: " in line]
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line.partition("Rows: ")[0])]


def test_rows_are_what_predict_prints(made, scored, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert cli.main(["predict", str(made / "in"), "--json", "--model", "model"]) == 1
    expected = pd.DataFrame(json.loads(capsys.readouterr().out)).sort_values("path", ignore_index=True)
    table = rows(scored)
    assert list(table.columns) == SCHEMA.names
    assert table.threshold.tolist() == expected.threshold.tolist() == [0.45] * 40
    assert not table.retry.any()
    there = {printable(str(path)): path.stat() for path in (made / "in").rglob("*")}
    files = [there[path] for path in table.path]
    assert table["size"].tolist() == [file.st_size for file in files]
    assert table.modified.astype("int64").tolist() == [file.st_mtime_ns for file in files]
    for name in ("path", "label", "error"):
        assert table[name].fillna("").tolist() == expected[name].fillna("").tolist()
    np.testing.assert_allclose(table.p_fake, expected.p_fake, atol=1e-5)
    assert table.error.notna().sum() == 3
    (version,) = set(table.model_version)
    record = json.loads((scored / RECORD).read_text())["model"]
    assert record == {"version": version, "sha256": record["sha256"], "threshold": 0.45, "temperature": 1.0}
    assert version == f"sha256:{record['sha256'][:16]}"
    assert sorted(len(pd.read_parquet(part)) for part in scored.glob("part-*.parquet")) == [4, 12, 12, 12]


def test_a_second_run_scores_what_is_left(here, made, scored, capsys):
    shutil.copytree(scored, here / "out")
    assert score(str(made / "in"), "out", "--model", "model") == 1  # broken images are among them still
    assert numbers(capsys.readouterr().out) == [0, 40, 0, 40, 3]
    parts = sorted((here / "out").glob("part-*.parquet"))
    parts[1].unlink()
    (here / "new").mkdir()
    for index in range(3):
        (here / "new" / f"{index}.png").write_bytes(png(0, index))
    assert score(str(made / "in"), f"{here}/new/[01].png", "out", "--model", "model") == 1
    assert numbers(capsys.readouterr().out) == [14, 42, 0, 28, 3]
    table = rows(here / "out")
    assert table.path.is_unique
    before = rows(scored)
    pd.testing.assert_frame_equal(table[table.path.isin(before.path)].reset_index(drop=True), before)
    assert set(table.path) - set(before.path) == {str(here / "new" / "0.png"), str(here / "new" / "1.png")}


def remove_versions(out):
    """Rewrite the files as an earlier version wrote them, without sizes and times."""
    for part in out.glob("part-*.parquet"):
        pd.read_parquet(part)[["path", "label", "p_fake", "error", "model_version"]].to_parquet(part, index=False)


def test_changed_images_and_errors_that_may_pass_are_scored_again(here, local_ray, capsys):
    """Overwritten images, a touched one, a link whose target was missing; all other rows stay."""
    (here / "elsewhere").mkdir()
    (here / "in" / "late.png").symlink_to("../elsewhere/late.png")
    words = ["in", "out", "--model", "model"]
    assert score(*words) == 1
    assert numbers(capsys.readouterr().out) == [41, 41, 0, 0, 4]
    before = rows(here / "out").set_index("path")
    late, changed, mended = (str(here / "in" / name) for name in ("late.png", "0/00.png", "truncated.png"))
    assert before.retry[before.retry].index.tolist() == [late]

    (here / "elsewhere" / "late.png").write_bytes(png(1, 3))
    Path(changed).write_bytes(png(1, 77))
    Path(mended).write_bytes(png(0, 78))
    os.utime(here / "in" / "0" / "03.png", (1, 1))
    assert score(*words) == 1
    assert numbers(capsys.readouterr().out) == [4, 41, 4, 37, 2]
    after = rows(here / "out").set_index("path")
    assert after.index.tolist() == before.index.tolist()
    again = [late, changed, mended, str(here / "in" / "0" / "03.png")]
    pd.testing.assert_frame_equal(after.drop(again), before.drop(again))
    expected = Detector.load(here / "model").predict([Path(path).read_bytes() for path in again])
    np.testing.assert_allclose(after.p_fake[again], [prediction.p_fake for prediction in expected], atol=1e-5)
    assert not after.retry.any()

    assert score(*words) == 1
    assert numbers(capsys.readouterr().out) == [0, 41, 0, 41, 2]


def test_rows_of_an_earlier_version_are_replaced(here, scored, capsys, made, monkeypatch):
    shutil.copytree(scored, here / "out")
    remove_versions(here / "out")
    monkeypatch.chdir(made)
    gone = made / "in" / "empty.jpg"
    kept = gone.stat()
    gone.unlink()
    try:
        assert score("in", str(here / "out"), "--model", "model") == 1
        assert numbers(capsys.readouterr().out) == [39, 39, 39, 0, 2]
    finally:
        gone.touch()
        os.utime(gone, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    table, before = rows(here / "out"), rows(scored)
    assert table.path.tolist() == before.path.tolist()
    unknown = table.modified.isna()
    assert table.path[unknown].tolist() == [str(gone)]  # an image that is no longer in IN keeps its row
    pd.testing.assert_frame_equal(table[~unknown].astype(before.dtypes), before[~unknown])


def test_two_models_that_start_at_the_same_time_do_not_mix(here):
    """Two processes, into one folder that does not exist yet."""
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "dfganext"), "score", "in", "out", "--workers", "1", "--model"]
    runs = {
        name: subprocess.Popen(
            [*command, name], cwd=here, env=threads, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for name in ("model", "other")
    }
    answers = {name: (run.communicate(timeout=300), run.returncode) for name, run in runs.items()}
    codes = {name: code for name, (_, code) in answers.items()}
    assert sorted(codes.values()) == [1, 2], answers  # 1: unreadable images; 2: the folder is the other model's
    (loser,) = [name for name, code in codes.items() if code == 2]
    error = [line for line in answers[loser][0][1].splitlines() if line.startswith("dfganext: ")]
    assert len(error) == 1 and "holds rows of another model" in error[0]
    table = rows(here / "out")
    assert len(table) == 40 and table.path.is_unique
    assert table.threshold.nunique() == table.model_version.nunique() == 1


def test_a_given_threshold(here, local_ray, capsys):
    (here / "model" / "operating_point.json").unlink()
    assert score("in", "out", "--model", "model") == 2
    assert "operating_point.json is missing" in capsys.readouterr().err
    assert score("in", "out", "--model", "model", "--threshold", "0") == 1
    assert capsys.readouterr().err.startswith("dfganext: This model has no temperature")
    table = rows(here / "out")
    assert set(table.threshold) == {0.0} and set(table.label.dropna()) == {"fake"}
    assert json.loads((here / "out" / RECORD).read_text())["model"]["temperature"] is None
    assert score("in", "out", "--model", "model", "--threshold", "0.5") == 2
    assert "name another folder, or that model with --model and --threshold" in capsys.readouterr().err


def test_a_damaged_model_is_one_sentence(here, local_ray, capsys):
    """Workers find it: this process does not load the model."""
    (here / "model" / "model.safetensors").write_bytes(b"damaged")
    assert score("in", "out", "--model", "model") == 2
    error = capsys.readouterr().err
    assert "No classifier can be loaded from the model (" in error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1, error


def test_images_and_rows_in_an_object_store(here, local_ray, capsys):
    """With local://, pyarrow reads the disk like an object store."""
    shutil.rmtree(here / "in" / "1")
    for name in ("empty.jpg", "truncated.png", "unnamed"):
        (here / "in" / name).unlink()
    assert score(f"local://{here}/in", f"local://{here}/out", "--model", "model") == 0
    out = capsys.readouterr().out
    assert numbers(out) == [24, 24, 0, 0, 0] and f"Rows: local://{here}/out\n" in out
    images = sorted(path for name in "02" for path in (here / "in" / name).iterdir())
    table = rows(here / "out")
    assert table.path.tolist() == [f"local://{path}" for path in images]
    predictions = Detector.load(here / "model").predict([path.read_bytes() for path in images])
    np.testing.assert_allclose(table.p_fake, [prediction.p_fake for prediction in predictions], atol=1e-5)
    assert score(f"local://{here}/in/0", f"local://{here}/out", "--model", "other") == 2
    assert "holds rows of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["in/*.bmp", "out"], "in/*.bmp does not exist, or matches nothing"),
        (["nothing", "out"], "There is no image in nothing"),
        (["local:///nowhere", "out"], "local:///nowhere does not exist"),
        (["in", "in/empty.jpg"], "in/empty.jpg cannot be accessed"),
        (["in", "model"], "model holds other files than `dfganext score` writes"),
        (["in", "out", "--model", "in"], "in holds no detector"),
        (["in", "out", "--model", "models:/df-ganext@champion"], "make repro"),
        (["in", "{scored}", "--model", "other"], "holds rows of another model, sha256:"),
    ],
)
def test_wrong_usage_is_one_sentence_and_nothing_is_written(here, scored, capsys, words, sentence):
    Path("nothing").mkdir()
    model = [] if "--model" in words else ["--model", "model"]
    assert score(*(word.format(scored=scored) for word in words), *model) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.startswith("dfganext: ")
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_usage(here, capsys, monkeypatch):
    for words in (["in"], ["in", "out", "--workers", "0"], ["in", "out", "--workers", "²"]):
        assert cli.main(["score", *words]) == 2
    capsys.readouterr()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert score("in", "out", "--model", "model") == 2
    assert "pip install 'df-ganext[scale]'" in capsys.readouterr().err


def test_a_missing_cluster_is_named(here, capsys, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert score("in", "out", "--model", "model") == 2
    assert "RAY_ADDRESS: no Ray can be used at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1 damaged PAR1"])
def test_a_damaged_part_is_named(here, scored, capsys, content):
    shutil.copytree(scored, here / "out")
    part = min((here / "out").glob("part-*.parquet"))
    part.write_bytes(content)
    assert score("in", "out", "--model", "model") == 2
    assert f"{part} cannot be read" in capsys.readouterr().err


def test_ray_replaces_workers_that_crash(made, tmp_path, local_ray, monkeypatch):
    """A process that ends while it reads an image; all images have a row, and only this one an error."""
    paths = sorted(str(path) for path in (made / "in" / "0").iterdir())[:6]

    def crash(path):
        import os

        return os._exit(1) if path == paths[2] else read(path)

    monkeypatch.setattr(recovery, "ATTEMPTS", 1)  # starting workers takes seconds
    folder = stores.Folder.at(str(tmp_path / "out"))
    images = [Found(path, 1, 10) for path in paths]
    cluster = Cluster(1, 0, shared=False)
    parts = [Part("part-0.parquet", images[:4]), Part("part-1.parquet", images[4:])]
    listing = Listing("in", iter(()), crash, remote=False)
    results = list(cluster.score_parts(parts, model.load(str(made / "model")), listing, folder))
    assert sorted(results) == [PartResult("part-0.parquet", 4, 0, 1), PartResult("part-1.parquet", 2)]
    table = pd.read_parquet(tmp_path / "out").sort_values("path")
    assert table.path.tolist() == paths
    assert table.path[table.error.notna()].tolist() == [paths[2]]
    assert table.error.dropna().tolist() == [recovery.CRASHED] and not table.retry.any()


class Run:
    """`dfganext score` in a process."""

    def __init__(self, root, *words, workers=1):
        command = [str(Path(sys.executable).parent / "dfganext"), "score", *words, "--workers", str(workers)]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ
        )
        self.out, self.private = root / words[words.index("--model") - 1], []

    def until(self, parts):
        """Wait until there are so many parts, and record the memory of the workers and the driver."""
        while self.process.poll() is None and len(list(self.out.glob("part-*.parquet"))) < parts:
            self.private.append({process.pid: private(process) for process in (*self.workers(), self.driver())})
            time.sleep(0.2)
        assert self.process.poll() is None, self.process.stdout.read()

    def driver(self):
        return psutil.Process(self.process.pid)

    def workers(self):
        return [one for one in self.driver().children(recursive=True) if title(one).startswith("ray::Worker")]

    def end(self):
        out, _ = self.process.communicate(timeout=300)
        return self.process.returncode, out


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def private(process):
    """Bytes of the process without shared memory: that of Ray has a limit."""
    try:
        memory = process.memory_info()
        return memory.rss - memory.shared
    except psutil.Error:
        return 0


def listening(process):
    return {one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN}


def until_open(address, server):
    """Wait until the server listens."""
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(address, 1):
            return
        time.sleep(0.5)
    raise AssertionError("the server has ended")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Many small images (links to a hundred files), one of each thousand broken, and a detector."""
    folder = tmp_path_factory.mktemp("many")
    detector(folder / "model", good=True)
    for index in range(101):
        (folder / f"{index}.png").write_bytes(png(index % 2, index) if index else b"")
    for index in range(MANY):
        path = folder / "in" / f"{index // 1000:02d}" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(folder / f"{index % 100 + 1 if index % 1000 != 7 else 0}.png")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(psutil.Process, "memory_info") or sys.platform != "linux", reason="reads /proc")
def test_many_images_with_a_worker_and_then_the_driver_killed(many, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    first = Run(many, "in", "out", "--model", "model", workers=2)
    first.until(parts=2)
    tree = [first.driver(), *first.driver().children(recursive=True)]
    addresses = set().union(*(listening(process) for process in tree))
    assert addresses and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    victim = first.workers()[0]
    victim.send_signal(signal.SIGKILL)
    first.until(parts=5)
    assert victim.pid not in {process.pid for process in first.workers()}
    first.process.kill()
    first.process.communicate()

    before = sum(len(pd.read_parquet(part)) for part in (many / "out").glob("part-*.parquet"))
    second = Run(many, "in", "out", "--model", "model", workers=2)
    second.until(parts=before // PART_IMAGES + 2)
    start = {process.pid: private(process) for process in (*second.workers(), second.driver())}
    second.until(parts=MANY // PART_IMAGES - 1)
    grown = {pid: held - start[pid] for pid, held in second.private[-1].items() if pid in start}
    code, out = second.end()
    assert code == 1
    predicted, total, _, found, unreadable = numbers(out)
    assert predicted + found == total == MANY
    assert 0 < before <= found < MANY  # a worker may finish its part after the driver was killed
    assert unreadable == MANY // 1000
    table = rows(many / "out")
    assert table.path.tolist() == sorted(str(path) for path in (many / "in").rglob("*.png"))
    assert table.path[table.error.notna()].tolist() == [
        str(many / "in" / f"{index:02d}" / f"{index:02d}007.png") for index in range(MANY // 1000)
    ]
    same = table[table.error.isna()].groupby(table.path.str[-6:-4]).p_fake
    assert (same.max() - same.min()).max() < 1e-5  # whichever worker and batch it was in
    assert grown and max(grown.values()) < 64 * MIB, {pid: size // MIB for pid, size in grown.items()}


def test_a_run_that_is_killed_while_it_replaces_rows_loses_no_row(many, local_ray, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(many)
    places = ["in/00", "in/01", "in/02", "in/03"]
    scoring.score(places, "again", "model", workers=1)
    paths = rows(many / "again").path.tolist()
    assert len(paths) == 4000
    for path in many.glob("*.png"):  # the images are links to these
        os.utime(path, (1, 1))
    written = {part: part.stat().st_mtime_ns for part in (many / "again").glob("part-*.parquet")}
    killed = Run(many, *places, "again", "--model", "model")
    while killed.process.poll() is None and all(part.stat().st_mtime_ns == when for part, when in written.items()):
        assert rows(many / "again").path.tolist() == paths
        time.sleep(0.1)
    assert killed.process.poll() is None
    killed.process.kill()
    killed.process.communicate()
    table = rows(many / "again")
    assert table.path.tolist() == paths
    assert 0 < (table.modified == pd.Timestamp(1, unit="s", tz="UTC")).sum() < 4000
    done = scoring.score(places, "again", "model", workers=1)
    assert done.rescored + done.kept == 4000 and done.rescored > 0
    table = rows(many / "again")
    assert table.path.tolist() == paths
    assert (table.modified == pd.Timestamp(1, unit="s", tz="UTC")).all()


def test_a_cluster(here, monkeypatch):
    """A Ray that was started before, to which this package's code is sent."""
    port = free_port()
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    ray = str(Path(sys.executable).parent / "ray")
    options = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    head = subprocess.Popen([ray, "start", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_open(("127.0.0.1", port), head)
        code, out = Run(here, "in", "out", "--model", "model").end()
        assert code == 1
        assert numbers(out) == [40, 40, 0, 0, 3]
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        head.terminate()
        _, left = psutil.wait_procs(family, timeout=5)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=30)
    assert len(rows(here / "out")) == 40
