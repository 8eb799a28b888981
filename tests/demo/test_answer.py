import base64
import csv
import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import free_port, png

from dfganext import cli, demo
from dfganext.data.discovery import TOO_LARGE, Unread
from dfganext.demo import facts, uploads
from dfganext.demo.analysis import Analyser
from dfganext.demo.page import MAX_FILES, Page
from dfganext.demo.uploads import Uploads
from dfganext.errors import UserError
from dfganext.inference.detector import Detector


@pytest.fixture(scope="module")
def analyser(model):
    return Analyser(model)


@pytest.fixture
def folder():
    made = Uploads()
    yield made
    made.close()


@pytest.fixture
def page(analyser, model, folder):
    return Page(analyser, facts.read(str(model), model, analyser.detector), folder)


def upload(folder, path):
    """What the browser sends for a file: its name, and the path of the upload."""
    target = folder.folder / os.urandom(8).hex() / "upload"
    target.parent.mkdir()
    shutil.copyfile(path, target)
    return {"name": path.name, "path": str(target)}


def csv_in(html):
    return base64.b64decode(re.search(r"base64,([^\"]+)\">Download CSV", html)[1]).decode()


def uploaded(folder):
    return [path for path in folder.folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("stability", [False, True])
def test_the_csv_is_that_of_predict(page, folder, pictures, model, monkeypatch, capsys, stability):
    html = page.answer({"files": [upload(folder, path) for path in pictures.iterdir()], "stability": stability})
    assert uploaded(folder) == []
    monkeypatch.chdir(pictures)
    names = sorted(path.name for path in pictures.iterdir())
    options = ["--stability"] if stability else []
    cli.main(["predict", *names, "--csv", "../rows.csv", "--model", str(model), *options])
    rows = [list(csv.DictReader(io.StringIO(text))) for text in (csv_in(html), Path("../rows.csv").read_text())]
    assert rows[0] == rows[1] and [row["path"] for row in rows[0]] == names
    assert {row["path"] for row in rows[0] if row["error"]} == {"broken.jpg", "empty.jpg", "huge.png"}
    for row in rows[0]:
        assert row["error"] in html
    assert html.count('class="df-heat"') == len(names) - 3


def test_names_may_be_the_same(page, folder, pictures):
    files = [upload(folder, pictures / name) for name in ("a.png", "b.png", "a.png")]
    html = page.answer({"files": files, "stability": False})
    assert html.count("<article") == 3 and "unreadable" not in html


def test_files_that_the_browser_did_not_send_are_rows_with_the_usual_error(page):
    html = page.answer({"files": [{"name": "big.png", "too_large": True}, {"name": "gone.png", "failed": True}]})
    assert TOO_LARGE in html and "the upload failed" in html
    assert "2 images: 2 unreadable" in html


def test_only_uploaded_files_are_read(page, folder, pictures):
    outside = pictures / "a.png"
    for path in (outside, folder.folder / ".." / "passwd", Path("/etc/passwd")):
        html = page.answer({"files": [{"name": "a.png", "path": str(path)}]})
        assert "not an uploaded file" in html
    assert outside.exists()
    (folder.folder / "link").symlink_to(outside)
    assert folder.take(str(folder.folder / "link")) == Unread("not an uploaded file", temporary=False)
    assert outside.exists()


def test_too_many_files_are_refused_and_removed(page, folder, pictures):
    files = [upload(folder, pictures / "a.png") for _ in range(MAX_FILES + 1)]
    assert f"101 images are more than {MAX_FILES}: choose fewer." in page.answer({"files": files})
    assert uploaded(folder) == []


def test_uploads_are_removed_if_the_model_fails(page, folder, pictures, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Detector, "predict_prepared", fail)
    with pytest.raises(RuntimeError):
        page.answer({"files": [upload(folder, path) for path in pictures.iterdir()]})
    assert uploaded(folder) == []


@pytest.mark.parametrize("request_", [None, {}, {"files": []}])
def test_no_files_no_results(page, request_):
    assert page.answer(request_) == ""


def test_several_people_get_their_own_answers(page, folder, pictures):
    answers = {}

    def ask(number):
        name = ("a.png", "b.png")[number % 2]
        answers[number] = csv_in(page.answer({"files": [upload(folder, pictures / name)]}))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        (row,) = csv.DictReader(io.StringIO(answers[number]))
        assert row["path"] == ("a.png", "b.png")[number % 2]
        (alone,) = csv.DictReader(io.StringIO(answers[number % 2]))
        assert float(row["p_fake"]) == pytest.approx(float(alone["p_fake"]), abs=1e-6)


def test_pixels_and_map_belong_to_their_image(analyser):
    files = [("a", png(0, 1)), ("none", Unread("no", temporary=False)), ("b", png(1, 1))]
    for stability in (False, True):
        found = list(analyser.analyse(files, stability))
        assert [one.row["path"] for one in found] == ["a", "none", "b"]
        for (_, data), one in zip(files, found, strict=True):
            if isinstance(data, Unread):
                assert one.pixels is None and one.heat is None and one.row["error"] == "no"
                continue
            (alone,) = analyser.analyse([("alone", data)])
            assert (one.pixels == alone.pixels).all() and one.pixels.shape == (32, 32, 3)
            assert one.heat == pytest.approx(alone.heat, rel=1e-3, abs=1e-6) and one.heat.ndim == 2
            assert ("stability" in one.row) == stability


def test_the_folder_of_uploads_is_private_and_old_files_are_removed(folder):
    assert stat.S_IMODE(folder.folder.stat().st_mode) == 0o700
    for name, age in (("old", 700), ("new", 0)):
        file = folder.folder / name / "image"
        file.parent.mkdir()
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    folder.remove_old()
    assert uploaded(folder) == [folder.folder / "new" / "image"]
    folder.close()
    assert not folder.folder.exists()


def test_a_folder_that_vanishes_while_old_files_are_looked_for(folder, monkeypatch):
    for name in ("a", "b", "c"):
        (folder.folder / name).mkdir()
        (folder.folder / name / "image").touch()
    scan, files = os.scandir, uploaded(folder)

    def while_the_others_are_taken(path):
        if Path(path).parent == folder.folder:
            while files:
                file = files.pop()
                if file.parent != Path(path):
                    folder.discard(str(file))
        return scan(path)

    monkeypatch.setattr(os, "scandir", while_the_others_are_taken)
    folder.remove_old(age=-1)
    monkeypatch.undo()
    assert list(folder.folder.iterdir()) == []


def test_without_space_in_memory_the_system_s_folder_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "MEMORY", tmp_path / "missing")
    made = Uploads()
    assert not made.in_memory and made.folder.is_dir()
    made.close()


def test_a_port_in_use_is_one_sentence(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} of 127.0.0.1 cannot be used: name another with --port"):
            demo.serve(str(model), port, stop=threading.Event())


def test_the_command_needs_gradio_and_a_model(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--model", "nowhere"]) == 2
    assert capsys.readouterr().err == ("dfganext: nowhere does not exist: name another model.\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert "pip install 'df-ganext[demo]'" in capsys.readouterr().err


class Interrupted(threading.Event):
    def wait(self, timeout=None):
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_demo_and_removes_its_folder(model, monkeypatch):
    made = []
    monkeypatch.setattr(uploads, "Uploads", lambda: made.append(Uploads()) or made[0])
    ready = []
    port = free_port()
    demo.serve(str(model), port, ready.append, Interrupted())
    assert ready == [f"http://127.0.0.1:{port}"]
    assert not made[0].folder.exists()


@pytest.mark.slow
def test_sigterm_ends_the_demo_and_removes_its_folder(model):
    port = free_port()
    code = "import sys; from dfganext.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "demo", "--model", str(model), "--port", str(port)]
    before = set(uploads.MEMORY.glob("dfganext-demo-*"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "Loading the model …\n"
        assert process.stdout.readline() == f"The demo is at http://127.0.0.1:{port} (Ctrl+C ends it).\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    assert set(uploads.MEMORY.glob("dfganext-demo-*")) <= before
