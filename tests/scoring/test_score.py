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

from dfganext import cli
from dfganext.data.discovery import printable
from dfganext.inference.detector import Detector
from dfganext.scoring.parts import PART_IMAGES
from dfganext.scoring.rows import COLUMNS, RECORD

MIB = 2**20


def rows(out):
    return pd.read_parquet(out).sort_values("path", ignore_index=True)


def score(*words):
    return cli.main(["score", *words, "--workers", "2"])


def test_rows_are_what_predict_says(made, scored, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert cli.main(["predict", str(made / "in"), "--json", "--model", "model"]) == 1
    expected = pd.DataFrame(json.loads(capsys.readouterr().out)).sort_values("path", ignore_index=True)
    table = rows(scored)
    assert tuple(table.columns) == COLUMNS
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


def test_started_again_it_does_what_is_left(here, made, scored, capsys):
    shutil.copytree(scored, here / "out")
    assert score(str(made / "in"), "out", "--model", "model") == 1  # broken images are among them still
    assert "0 of 40 images judged now (0 of them again), 40 before; 3 could not be read" in capsys.readouterr().out
    parts = sorted((here / "out").glob("part-*.parquet"))
    parts[1].unlink()
    (here / "new").mkdir()
    for index in range(3):
        (here / "new" / f"{index}.png").write_bytes(png(0, index))
    assert score(str(made / "in"), f"file://{here}/new/[01].png", "out", "--model", "model") == 1
    assert "14 of 42 images judged now (0 of them again), 28 before; 3 could not be read" in capsys.readouterr().out
    table = rows(here / "out")
    assert table.path.is_unique
    before = rows(scored)
    pd.testing.assert_frame_equal(table[table.path.isin(before.path)].reset_index(drop=True), before)
    assert set(table.path) - set(before.path) == {str(here / "new" / "0.png"), str(here / "new" / "1.png")}


def as_before(out):
    """Make the files as the version wrote them that knew nothing of sizes and times."""
    for part in out.glob("part-*.parquet"):
        pd.read_parquet(part)[["path", "label", "p_fake", "error", "model_version"]].to_parquet(part, index=False)


def test_what_changed_and_what_may_pass_is_judged_again(here, capsys):
    """An image that was overwritten, one that was not there, a folder that could not be listed; the others' rows stay."""
    (here / "elsewhere").mkdir()
    (here / "in" / "late.png").symlink_to("../elsewhere/late.png")
    words = ["in", "out", "--model", "model"]
    assert score(*words) == 1
    assert "41 of 41 images judged now (0 of them again), 0 before; 4 could not be read" in capsys.readouterr().out
    before = rows(here / "out").set_index("path")
    late, changed, mended = (str(here / "in" / name) for name in ("late.png", "0/00.png", "truncated.png"))
    assert before.retry[before.retry].index.tolist() == [late]

    (here / "elsewhere" / "late.png").write_bytes(png(1, 3))
    Path(changed).write_bytes(png(1, 77))
    Path(mended).write_bytes(png(0, 78))
    os.utime(here / "in" / "0" / "03.png", (1, 1))
    assert score(*words) == 1
    assert "4 of 41 images judged now (4 of them again), 37 before; 2 could not be read" in capsys.readouterr().out
    after = rows(here / "out").set_index("path")
    assert after.index.tolist() == before.index.tolist()
    again = [late, changed, mended, str(here / "in" / "0" / "03.png")]
    pd.testing.assert_frame_equal(after.drop(again), before.drop(again))
    expected = Detector.load(here / "model").predict([Path(path).read_bytes() for path in again])
    np.testing.assert_allclose(after.p_fake[again], [verdict.p_fake for verdict in expected], atol=1e-5)
    assert not after.retry.any()

    assert score(*words) == 1
    assert "0 of 41 images judged now (0 of them again), 41 before; 2 could not be read" in capsys.readouterr().out


def test_rows_of_an_earlier_version_are_made_anew(here, scored, capsys, made, monkeypatch):
    shutil.copytree(scored, here / "out")
    as_before(here / "out")
    monkeypatch.chdir(made)
    gone = made / "in" / "empty.jpg"
    kept = gone.stat()
    gone.unlink()
    try:
        assert score("in", str(here / "out"), "--model", "model") == 1
        out, err = capsys.readouterr()
        assert "39 of 39 images judged now (39 of them again), 0 before; 2 could not be read" in out
        assert "39 rows" in err and "of an earlier version" in err
    finally:
        gone.touch()
        os.utime(gone, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    table, before = rows(here / "out"), rows(scored)
    assert table.path.tolist() == before.path.tolist()
    unknown = table.modified.isna()
    assert table.path[unknown].tolist() == [str(gone)]  # what left IN keeps its row
    pd.testing.assert_frame_equal(table[~unknown].astype(before.dtypes), before[~unknown])


def test_two_models_that_start_at_once_cannot_mix(here):
    """Each command as a shell starts it, into one folder that is not there yet."""
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "dfganext"), "score", "in", "out", "--workers", "1", "--model"]
    runs = {
        name: subprocess.Popen(
            [*command, name], cwd=here, env=threads, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for name in ("model", "other")
    }
    told = {name: (run.communicate(timeout=300), run.returncode) for name, run in runs.items()}
    codes = {name: code for name, (_, code) in told.items()}
    assert sorted(codes.values()) == [1, 2], (
        told
    )  # of the images that can be judged, and of the folder's being another's
    (loser,) = [name for name, code in codes.items() if code == 2]
    error = [line for line in told[loser][0][1].splitlines() if line.startswith("dfganext: ")]
    assert len(error) == 1 and "holds verdicts of another model" in error[0]
    table = rows(here / "out")
    assert len(table) == 40 and table.path.is_unique
    assert table.threshold.nunique() == table.model_version.nunique() == 1


def test_a_threshold_of_ones_own(here, capsys):
    (here / "model" / "operating_point.json").unlink()
    assert score("in", "out", "--model", "model") == 2
    assert "operating_point.json is missing" in capsys.readouterr().err
    assert score("in", "out", "--model", "model", "--threshold", "0") == 1
    assert capsys.readouterr().err.startswith("dfganext: No temperature is known for this model")
    table = rows(here / "out")
    assert set(table.threshold) == {0.0} and set(table.label.dropna()) == {"fake"}
    assert json.loads((here / "out" / RECORD).read_text())["model"]["temperature"] is None
    assert score("in", "out", "--model", "model", "--threshold", "0.5") == 2
    assert "name another folder, or that model with --model and --threshold" in capsys.readouterr().err


def test_an_object_store_at_both_ends(here, capsys):
    """pyarrow reaches the disk under local:// the way it reaches s3://."""
    (here / "in" / "1" / os.fsdecode(b"caf\xe9.gif")).unlink()  # no key of an object store is like that
    assert score(f"local://{here}/in/[02]", f"local://{here}/out", "--model", "model") == 0
    assert (
        f"24 of 24 images judged now (0 of them again), 0 before; 0 could not be read (see column error). Rows: local://{here}/out"
        in (capsys.readouterr().out)
    )
    images = sorted(path for name in "02" for path in (here / "in" / name).iterdir())
    table = rows(here / "out")
    assert table.path.tolist() == [f"local://{path}" for path in images]
    verdicts = Detector.load(here / "model").predict([path.read_bytes() for path in images])
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


class Run:
    """`dfganext score` in a process of its own, as a shell starts it."""

    def __init__(self, root, *words):
        command = [str(Path(sys.executable).parent / "dfganext"), "score", *words, "--workers", "2"]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ
        )
        self.out, self.private = root / words[words.index("--model") - 1], []

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
    second.until(parts=before // PART_IMAGES + 2)
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
def test_a_run_that_is_killed_while_it_replaces_rows_loses_none(many, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["in/00", "in/01", "in/02", "in/03", "again", "--model", "model"]
    assert Run(many, *words).end()[0] == 1
    paths = rows(many / "again").path.tolist()
    assert len(paths) == 4000
    for path in many.glob("*.png"):  # the images are links to these
        os.utime(path, (1, 1))
    written = {part: part.stat().st_mtime_ns for part in (many / "again").glob("part-*.parquet")}
    killed = Run(many, *words)
    while killed.process.poll() is None and all(part.stat().st_mtime_ns == when for part, when in written.items()):
        assert rows(many / "again").path.tolist() == paths
        time.sleep(0.1)
    assert killed.process.poll() is None
    killed.process.kill()
    killed.process.communicate()
    table = rows(many / "again")
    assert table.path.tolist() == paths
    assert 0 < (table.modified == pd.Timestamp(1, unit="s", tz="UTC")).sum() < 4000
    code, out = Run(many, *words).end()
    assert code == 1
    again, before = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+)(?: of them again| before)", out))
    assert again + before == 4000 and again > 0
    table = rows(many / "again")
    assert table.path.tolist() == paths
    assert (table.modified == pd.Timestamp(1, unit="s", tz="UTC")).all()


@pytest.mark.slow
def test_a_cluster(here, monkeypatch):
    """A Ray that was started beforehand, which needs to be told of this package's code."""
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
        assert "40 of 40 images judged now (0 of them again), 0 before; 3 could not be read" in out
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            process.terminate()
        psutil.wait_procs(family, timeout=30)
    assert len(rows(here / "out")) == 40
