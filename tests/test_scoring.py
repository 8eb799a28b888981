import importlib.util
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
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import detector, enter_root, png

from dfganext import cli, inputs, scoring, stores
from dfganext.detector import Detector
from dfganext.inputs import Found

if importlib.util.find_spec("ray") is None:  # to import it now would be too early: scoring settles its environment
    pytest.skip("needs the extra scale", allow_module_level=True)

MIB = 2**20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A detector and forty images, three of which are broken, one of them by its very name."""
    folder = tmp_path_factory.mktemp("made")
    detector(folder / "model", good=True, threshold=0.45)
    detector(folder / "other", good=True, threshold=0.55)
    for index in range(36):
        path = folder / "in" / f"{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index % 2, index))
    (folder / "in" / "empty.jpg").touch()
    (folder / "in" / "truncated.png").write_bytes(png(0, 1)[:300])
    (folder / "in" / "unnamed").write_bytes(png(0, 1))
    (folder / "in" / "1" / os.fsdecode(b"caf\xe9.gif")).write_bytes(b"GIF89a and no more")
    (folder / "in" / "readme.txt").write_text("no image")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(made, tmp_path / "root")
    return enter_root(tmp_path / "root", monkeypatch)


@pytest.fixture(scope="module")
def scored(made, tmp_path_factory):
    """OUT of those images, which nobody is to change."""
    out = tmp_path_factory.mktemp("scored") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.chdir(made)
        done = scoring.score(["in"], str(out), "model", workers=2, part_images=12)
    assert (done.where, done.total, done.before, done.judged, done.unread, done.lost) == (
        str(out), 40, 0, 40, 3, []
    )  # fmt: skip
    return out


def rows(out):
    return pd.read_parquet(out).sort_values("path", ignore_index=True)


def score(*words):
    return cli.main(["score", *words, "--workers", "2"])


def test_the_same_weights_in_another_precision_are_another_model(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "fast")
    point = tmp_path / "fast" / "operating_point.json"
    point.write_text(json.dumps(json.loads(point.read_text()) | {"precision": "bfloat16"}))
    exact, fast = (scoring.load_model(str(folder)) for folder in (made / "model", tmp_path / "fast"))
    assert exact.sha256 != fast.sha256
    assert exact.sha256 == scoring.load_model(str(made / "model")).sha256


def test_rows_are_what_predict_says(made, scored, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert cli.main(["predict", str(made / "in"), "--json", "--model", "model"]) == 1
    expected = pd.DataFrame(json.loads(capsys.readouterr().out)).sort_values("path", ignore_index=True)
    table = rows(scored)
    assert tuple(table.columns) == scoring.COLUMNS
    for name in ("path", "label", "error"):
        assert table[name].fillna("").tolist() == expected[name].fillna("").tolist()
    np.testing.assert_allclose(table.p_fake, expected.p_fake, atol=1e-5)
    assert table.error.notna().sum() == 3
    (version,) = set(table.model_version)
    record = json.loads((scored / scoring.RECORD).read_text())["model"]
    assert record == {"version": version, "sha256": record["sha256"], "threshold": 0.45, "temperature": 1.0}
    assert version == f"sha256:{record['sha256'][:16]}"
    assert sorted(len(pd.read_parquet(part)) for part in scored.glob("part-*.parquet")) == [4, 12, 12, 12]


def test_started_again_it_does_what_is_left(here, made, scored, capsys):
    shutil.copytree(scored, here / "out")
    assert score(str(made / "in"), "out", "--model", "model") == 1  # broken images are among them still
    assert "0 of 40 images judged now, 40 before; 3 could not be read" in capsys.readouterr().out
    parts = sorted((here / "out").glob("part-*.parquet"))
    parts[1].unlink()
    (here / "new").mkdir()
    for index in range(3):
        (here / "new" / f"{index}.png").write_bytes(png(0, index))
    assert score(str(made / "in"), f"file://{here}/new/[01].png", "out", "--model", "model") == 1
    assert "14 of 42 images judged now, 28 before; 3 could not be read" in capsys.readouterr().out
    table = rows(here / "out")
    assert table.path.is_unique
    before = rows(scored)
    pd.testing.assert_frame_equal(table[table.path.isin(before.path)].reset_index(drop=True), before)
    assert set(table.path) - set(before.path) == {str(here / "new" / "0.png"), str(here / "new" / "1.png")}


def test_an_object_store_at_both_ends(here, capsys):
    """pyarrow reaches the disk under local:// the way it reaches s3://."""
    (here / "in" / "1" / os.fsdecode(b"caf\xe9.gif")).unlink()  # no key of an object store is like that
    assert score(f"local://{here}/in/[02]", f"local://{here}/out", "--model", "model") == 0
    assert (
        f"24 of 24 images judged now, 0 before; 0 could not be read (see column error). Rows: local://{here}/out"
        in (capsys.readouterr().out)
    )
    images = sorted(path for name in "02" for path in (here / "in" / name).iterdir())
    table = rows(here / "out")
    assert table.path.tolist() == [f"local://{path}" for path in images]
    verdicts = Detector.load(here / "model").judge([path.read_bytes() for path in images])
    np.testing.assert_allclose(table.p_fake, [verdict.p_fake for verdict in verdicts], atol=1e-5)
    assert score(f"local://{here}/in/*/*.png", f"local://{here}/out", "--model", "other") == 2
    assert "holds verdicts of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["in/*.bmp", "out"], "in/*.bmp matches nothing"),
        (["nothing", "out"], "There is no image in nothing"),
        (["local:///nowhere", "out"], "local:///nowhere does not exist"),
        (["in", "in/empty.jpg"], "in/empty.jpg is a file: name a folder"),
        (["in", "model"], "model holds other files than `dfganext score` writes"),
        (["in", "out", "--model", "in"], "in holds no detector"),
        (["in", "out", "--model", "models:/df-ganext@champion"], "make repro"),
        (["in", "{scored}", "--model", "other"], "holds verdicts of another model, sha256:"),
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
        with pytest.raises(SystemExit) as end:
            cli.main(["score", *words])
        assert end.value.code == 2
    capsys.readouterr()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert score("in", "out", "--model", "model") == 2
    assert "pip install 'df-ganext[scale]'" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_named(here, capsys, monkeypatch):
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


def plan_of(paths, done=(), part_images=4):
    told = scoring.Scored(np.sort(scoring.digests_of(list(done))), np.zeros(len(done), bool))
    listing = stores.Listing("in", iter([Found(path, 1) for path in paths]), inputs.read, remote=False)
    plan = scoring.Plan(listing, told, part_images)
    return plan, list(plan)


def test_parts_are_the_same_however_much_is_done():
    paths = [f"/in/{index:02d}.png" for index in range(18)]
    plan, parts = plan_of(paths)
    assert [image.path for part in parts for image in part.images] == paths
    assert [len(part.images) for part in parts] == [4, 4, 4, 4, 2]
    assert len({part.name for part in parts}) == 5
    assert (plan.total, plan.before) == (18, 0)
    for finished in ({0, 1}, {1, 3}, {4}, {0, 1, 2, 3, 4}):
        done = [image.path for place in finished for image in parts[place].images]
        plan, left = plan_of(paths, done)
        assert left == [part for place, part in enumerate(parts) if place not in finished]
        assert (plan.total, plan.before) == (18, len(done))


def test_images_that_joined_or_left_change_nothing_for_the_others():
    generator = np.random.default_rng(0)
    for _ in range(50):
        names = np.array([f"/in/{index:03d}" for index in range(60)])
        done, present = set(names[generator.random(60) < 0.5]), sorted(names[generator.random(60) < 0.7])
        plan, parts = plan_of(present, done, part_images=7)
        left = [image.path for part in parts for image in part.images]
        assert left == [name for name in present if name not in done]
        assert (plan.total, plan.before) == (len(present), len(present) - len(left))


def test_digests_keep_zeros_at_their_end(monkeypatch):
    digests = np.array([b"\0" * 16, b"a" + b"\0" * 15, b"a" * 15 + b"\0", b"a" * 16, b"\xff" * 16], "S16")
    monkeypatch.setattr(scoring, "digests_of", lambda paths: np.array([digests[int(path)] for path in paths], "S16"))
    told = scoring.Scored(np.sort(digests[[0, 2, 4]]), np.array([True, False, False]))
    known, unread = told.among([Found(str(index), 0) for index in range(5)])
    assert known.tolist() == [True, False, True, False, True]
    assert unread == 1


def test_reading_ahead_is_bounded(made, monkeypatch):
    """Two batches are in memory at most: the one that is judged and the next."""
    monkeypatch.setattr(scoring, "BATCH_BYTES", 100)
    monkeypatch.setattr(scoring, "BATCH_FILES", 4)
    batches = [[10, 90], [50], [60], [500], [1, 1, 1], [99], [100], [40, 1, 2, 3], [4]]
    verdict = Detector.load(made / "model").judge([png(0, 1)])
    begun, judged = [], []

    class Judge:
        def judge(self, encoded):
            time.sleep(0.02)  # the next batch may be read meanwhile
            judged.append(encoded)
            assert len(begun) <= sum(map(len, batches[: len(judged) + 1]))
            return verdict * len(encoded)

    def read(path):
        begun.append(path)
        return b"x" * int(path)

    sizes = [size for batch in batches for size in batch]
    told = list(scoring.judge_images(Judge(), [Found(str(size), size) for size in sizes], read, threads=2))
    assert [row.path for row in told] == list(map(str, sizes))
    assert [[len(data) for data in batch] for batch in judged] == batches


class Died(BaseException):
    """In the place of a worker's death."""


def attempts(folder, killers, made, deaths_elsewhere=0):
    """Attempts at a part with images that kill, each by a new worker, until one tells how it ended."""
    watch = scoring.Watch()
    calls = {name: SimpleNamespace(remote=getattr(watch, name)) for name in ("begin", "at", "end")}
    paths = [f"{index}.png" for index in range(8)]
    random_deaths = iter(range(deaths_elsewhere))

    def read(path):
        if path in killers or (path == "5.png" and next(random_deaths, None) is not None):
            raise Died
        return png(0, 1)

    for count in range(1, 100):
        worker = scoring.Worker.__new__(scoring.Worker)
        worker.detector = Detector.load(made / "model")
        worker.version, worker.read, worker.strict, worker.threads = "v", read, False, 1
        worker.folder, worker.watch, worker.wait = folder, SimpleNamespace(**calls), lambda answer: answer
        try:
            done = worker._do(scoring.Part("part-0.parquet", [Found(path, 1) for path in paths]))
        except Died:
            continue
        assert done.lost or not watch.seen
        return count, done
    raise AssertionError("it never ends")


def test_an_image_that_kills_is_a_row_with_an_error(made, tmp_path):
    folder = stores.folder_at(str(tmp_path))
    for killers, expected in (((), 1), (("3.png",), 4), (("0.png", "3.png", "7.png"), 8)):
        count, done = attempts(folder, killers, made)
        assert (count, done) == (expected, scoring.Done("part-0.parquet", 8, len(killers)))
        table = rows(tmp_path)
        assert table.path[table.error == scoring.KILLER].tolist() == list(killers)
        assert table.p_fake.notna().sum() == 8 - len(killers)


def test_a_worker_that_dies_otherwise_accuses_no_image(made, tmp_path):
    count, done = attempts(stores.folder_at(str(tmp_path)), (), made, deaths_elsewhere=2)
    assert (count, done) == (3, scoring.Done("part-0.parquet", 8, 0))


def test_a_part_that_kills_for_ever_is_given_up(made, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "judge_images", lambda *_: (_ for _ in ()).throw(Died))
    monkeypatch.setattr(scoring.Watch, "at", lambda *_: None)
    count, done = attempts(stores.folder_at(str(tmp_path)), (), made)
    assert (count, done) == (scoring.ATTEMPTS + 1, scoring.Done("part-0.parquet", lost=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("resources", "asked", "workers", "share"),
    [
        ({"CPU": 6.0}, None, 6, 0),
        ({"CPU": 6.0}, 9, 9, 0),
        ({"CPU": 64.0, "GPU": 2.0}, None, 8, 0.25),
        ({"CPU": 3.0, "GPU": 1.0}, None, 3, 1 / 3),
        ({"CPU": 64.0, "GPU": 4.0}, 6, 6, 0.5),
    ],
)
def test_workers_share_the_graphics_processors(resources, asked, workers, share):
    assert scoring._cluster(resources, asked, shared=False) == scoring.Cluster(workers, share, False)


class Run:
    """`dfganext score` in a process of its own, as a shell starts it."""

    def __init__(self, root, *words):
        command = [str(Path(sys.executable).parent / "dfganext"), "score", *words, "--workers", "2"]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ
        )
        self.out, self.private = root / "out", []

    def until(self, parts):
        """Wait until there are so many parts, and take the workers' and the driver's memory down."""
        while self.process.poll() is None and len(list(self.out.glob("part-*.parquet"))) < parts:
            self.private.append({process.pid: private(process) for process in (*self.workers(), self.driver())})
            time.sleep(0.2)
        assert self.process.poll() is None, self.process.stdout.read()

    def driver(self):
        return psutil.Process(self.process.pid)

    def workers(self):
        return [one for one in self.driver().children(recursive=True) if title(one).startswith("ray::MapWorker")]

    def end(self):
        out, _ = self.process.communicate(timeout=300)
        return self.process.returncode, out


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def private(process):
    """Bytes that are the process's alone: what Ray shares among all is bounded once."""
    try:
        memory = process.memory_info()
        return memory.rss - memory.shared
    except psutil.Error:
        return 0


def listening(process):
    return {one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN}


def until_open(address, server):
    """Wait until somebody listens there."""
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(address, 1):
            return
        time.sleep(0.5)
    raise AssertionError("the server has ended")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """20,000 small images (links to a hundred files), twenty of them broken, and a detector."""
    folder = tmp_path_factory.mktemp("many")
    detector(folder / "model", good=True)
    for index in range(101):
        (folder / f"{index}.png").write_bytes(png(index % 2, index) if index else b"")
    for index in range(20_000):
        path = folder / "in" / f"{index // 1000:02d}" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(folder / f"{index % 100 + 1 if index % 1000 != 7 else 0}.png")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process, "memory_info") or sys.platform != "linux", reason="reads /proc")
def test_twenty_thousand_images_with_a_worker_and_then_the_driver_killed(many, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    first = Run(many, "in", "out", "--model", "model")
    first.until(parts=2)
    tree = [first.driver(), *first.driver().children(recursive=True)]
    addresses = set().union(*(listening(process) for process in tree))
    assert addresses and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    victim = first.workers()[0]
    victim.send_signal(signal.SIGKILL)
    first.until(parts=9)
    assert victim.pid not in {process.pid for process in first.workers()}
    first.process.kill()
    first.process.communicate()

    before = sum(len(pd.read_parquet(part)) for part in (many / "out").glob("part-*.parquet"))
    second = Run(many, "in", "out", "--model", "model")
    second.until(parts=before // scoring.PART_IMAGES + 2)
    start = {process.pid: private(process) for process in (*second.workers(), second.driver())}
    second.until(parts=19)
    grown = {pid: held - start[pid] for pid, held in second.private[-1].items() if pid in start}
    code, out = second.end()
    assert code == 1
    judged, found = (
        int(number.replace(",", "")) for number in re.findall(r"([\d,]+)(?: of 20,000 images| before)", out)
    )
    assert judged + found == 20_000
    assert 0 < before <= found < 20_000  # a worker may end its part after the driver's death
    assert "; 20 could not be read" in out
    table = rows(many / "out")
    assert table.path.tolist() == sorted(str(path) for path in (many / "in").rglob("*.png"))
    assert table.path[table.error.notna()].tolist() == [
        str(many / "in" / f"{index:02d}" / f"{index:02d}007.png") for index in range(20)
    ]
    same = table[table.error.isna()].groupby(table.path.str[-6:-4]).p_fake
    assert (same.max() - same.min()).max() < 1e-5  # whoever judged it, and in whatever company
    assert grown and max(grown.values()) < 64 * MIB, {pid: size // MIB for pid, size in grown.items()}


@pytest.mark.slow
def test_a_cluster(here, monkeypatch):
    """A Ray that was started beforehand, which needs to be told of this package's code."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": "127.0.0.1:6389",
    }.items():
        monkeypatch.setenv(name, value)
    ray = str(Path(sys.executable).parent / "ray")
    options = ["--head", "--block", "--port=6389", "--num-cpus=2", "--include-dashboard=false"]
    head = subprocess.Popen([ray, "start", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_open(("127.0.0.1", 6389), head)
        code, out = Run(here, "in", "out", "--model", "model").end()
        assert code == 1
        assert "40 of 40 images judged now, 0 before; 3 could not be read" in out
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            process.terminate()
        psutil.wait_procs(family, timeout=30)
    assert len(rows(here / "out")) == 40
