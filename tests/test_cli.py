import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import add_rule, detector, enter_root, png
from PIL import Image

from dfganext import __version__, cli
from dfganext.inference.detector import Detector
from dfganext.report.text import SAMPLE, SAMPLE_WARNING


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    add_rule(detector(folder / "model", good=True, threshold=0.45))
    images = folder / "images"
    (images / "deep" / "er").mkdir(parents=True)
    (images / "a.png").write_bytes(png(0, 1))
    (images / "no-suffix").write_bytes(png(1, 1))
    (images / "deep" / "er" / "a.png").write_bytes(png(1, 2))
    (images / "deep" / "empty.jpg").touch()
    (images / "truncated.jpg").write_bytes(png(0, 1)[:300])
    (images / "readme.txt").write_text("BMW makes cars; P5 is no picture")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "root")
    return enter_root(tmp_path / "root", monkeypatch)


PATHS = ["images/a.png", "images/deep/empty.jpg", "images/deep/er/a.png", "images/no-suffix", "images/truncated.jpg"]
ANSI = r"\x1b\[[0-9;?]*[A-Za-z]"
BROKEN = {"images/deep/empty.jpg", "images/truncated.jpg"}


def predict(*words):
    return cli.main(["predict", *words, "--model", "model"])


def test_json_and_csv_have_one_row_per_image_in_path_order(here, capsys):
    assert predict("images/no-suffix", "images", "--json", "--csv", "out/rows.csv") == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == PATHS
    with Path("out/rows.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == ["path", "label", "p_fake", "threshold", "decision", "reason", "error"]
    one = Detector.load(here / "model")
    for row, line in zip(rows, table, strict=True):
        (prediction,) = one.predict([Path(row["path"]).read_bytes()])
        assert (row["label"], row["decision"], row["reason"]) == (
            prediction.label,
            prediction.decision,
            prediction.reason,
        )
        assert (line["decision"], line["reason"]) == (row["decision"] or "", row["reason"] or "")
        assert row["threshold"] == float(line["threshold"]) == 0.45
        assert (row["error"] is not None) == (row["path"] in BROKEN)
        assert line["error"] == (row["error"] or "")
        assert line["label"] == (row["label"] or "")
        if prediction.p_fake is None:
            assert row["p_fake"] is None and line["p_fake"] == ""
        else:
            assert row["p_fake"] == float(line["p_fake"]) == pytest.approx(prediction.p_fake, abs=1e-6)


def test_the_table(here, capsys):
    assert predict("images/a.png") == 0
    out, err = capsys.readouterr()
    header, line = out.splitlines()
    assert header.split() == ["path", "label", "p_fake", "decision", "note"]
    (found,) = Detector.load(here / "model").predict([png(0, 1)])
    assert line.split()[:4] == ["images/a.png", found.label, f"{found.p_fake:.4f}", found.decision]
    assert err == ""
    assert predict("images") == 1
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(PATHS)


def test_the_note_says_why_the_decision_is_unsure(here, capsys):
    add_rule(here / "model", real_up_to=0.0, fake_above=1.0)
    assert predict("images/a.png") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("unsure    p_fake is between 0.000 and 1.000")


def test_stability_names_the_copies_that_change_the_decision(here, capsys):
    (found,) = Detector.load(here / "model").predict([png(0, 1)], stability=True)
    copies = {name: copy.p_fake for name, copy in found.stability.items()}
    assert list(copies) == ["jpeg_75", "jpeg_50", "half_size"]
    edge = (found.p_fake + copies["half_size"]) / 2  # between the image and this copy
    add_rule(here / "model", real_up_to=edge, fake_above=edge)
    own, other = ("fake", "real") if found.p_fake > edge else ("real", "fake")
    changes = [name for name, p_fake in copies.items() if (p_fake > edge) != (found.p_fake > edge)]
    assert predict("images/a.png", "--stability", "--threshold", str(edge), "--json", "--csv", "rows.csv") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["decision"] == own
    assert row["stability"]["changes"] == changes
    assert row["stability"]["half_size"] == {
        "decision": other,
        "p_fake": pytest.approx(copies["half_size"], abs=1e-6),
    }
    shown = ", ".join(f"{name} {other}" for name in changes)
    assert pd.read_csv("rows.csv").stability.tolist() == [shown]
    assert predict("images/a.png", "--stability", "--threshold", str(edge)) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(f"changes: {shown}")


def test_a_folder_without_an_operating_point_needs_a_threshold(here, capsys):
    Path("model/operating_point.json").unlink()
    assert predict("images/a.png", "--csv", "rows.csv") == 2
    out, err = capsys.readouterr()
    assert out == "" and not Path("rows.csv").exists()
    assert err.startswith("dfganext: model/operating_point.json is missing: ") and err.count("\n") == 1
    assert "--threshold" in err and "`dvc repro evaluate`" in err
    assert predict("images/a.png", "--json", "--threshold", "0.3") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["threshold"] == 0.3
    assert err == ("dfganext: This model has no temperature, so 1 is used: p_fake is not calibrated.\n")


def test_the_threshold_option_overrides_the_operating_point(here, capsys):
    for threshold, label in (("0", "fake"), ("1", "real")):
        assert predict("images/a.png", "images/no-suffix", "--json", "--threshold", threshold) == 0
        out, err = capsys.readouterr()
        assert [(row["label"], row["threshold"]) for row in json.loads(out)] == [(label, float(threshold))] * 2
        assert err == ""


@pytest.mark.parametrize("text", ["1.01", "-0.1", "nan", "inf", "half", ""])
@pytest.mark.parametrize("words", [["predict", "images"], ["score", "images", "out"]])
def test_a_threshold_is_a_number_from_0_to_1(here, capsys, words, text):
    assert cli.main([*words, f"--threshold={text}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.match(r"dfganext: .*'--threshold': Input should be .*(number|equal to [01]) \(see", err)


def test_heatmaps_have_different_names(here, capsys):
    assert predict("images", "--heatmaps", "maps", "--json") == 1
    rows = json.loads(capsys.readouterr().out)
    maps = {row["path"]: row.get("heatmap") for row in rows}
    assert sorted(path.name for path in Path("maps").iterdir()) == ["a-2.png", "a.png", "no-suffix.png"]
    assert maps["images/a.png"] == "maps/a.png"
    assert maps["images/deep/er/a.png"] == "maps/a-2.png"
    assert {path for path, one in maps.items() if one is None} == BROKEN
    assert Image.open("maps/a-2.png").size == (32, 32)


def test_names_of_heatmaps_never_clash(tmp_path):
    files = [Path(name) for name in ("a-2.png", "b/a.jpg", "c/A.jpg", "d/a.png")]
    names = [path.name for path in cli.heatmap_files(files, tmp_path).values()]
    assert names == ["a-2.png", "a.png", "A-3.png", "a-4.png"]


def test_batches_do_not_change_predictions(here, capsys, monkeypatch):
    outputs = []
    for name, limit in (("BATCH_FILES", 32), ("BATCH_FILES", 2), ("BATCH_BYTES", 1)):
        monkeypatch.setattr(cli, name, limit)
        assert predict("images", "--json") == 1
        outputs.append(json.loads(capsys.readouterr().out))
    for rows in outputs:
        assert [row["path"] for row in rows] == PATHS
        for row, first in zip(rows, outputs[0], strict=True):
            assert (row["label"], row["error"]) == (first["label"], first["error"])
            assert row["p_fake"] == (first["p_fake"] and pytest.approx(first["p_fake"], abs=1e-6))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.png"], "nowhere.png does not exist"),
        (["images/a.png", "nowhere"], "nowhere does not exist"),
        (["nothing"], "no image in nothing"),
        (["images", "--csv", "images"], "--csv: images cannot be written"),
        (["images", "--heatmaps", "images/a.png"], "--heatmaps: images/a.png cannot be written"),
        (["images", "--model", "images"], "images holds no detector"),
        (["images", "--model", "models:/df-ganext@champion"], "make repro"),
    ],
)
def test_an_error_is_one_sentence_before_any_output(here, capsys, words, sentence):
    Path("nothing").mkdir()
    assert cli.main(["predict", "--model", "model", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.startswith("dfganext: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Missing command (see `dfganext --help`)."),
        (["predict"], "Missing argument 'PATH' (see `dfganext predict --help`)."),
        (["predict", "x", "--no-such"], "No such option: --no-such (see `dfganext predict --help`)."),
        (["pred"], "No such command 'pred'. Did you mean 'predict'? (see `dfganext --help`)."),
        (["score", "in"], "Missing argument 'IN' (see `dfganext score --help`)."),
        (["export"], "Missing argument 'DIR' (see `dfganext export --help`)."),
    ],
)
def test_wrong_usage_is_one_sentence_that_names_the_help(capsys, words, sentence):
    assert cli.main(words) == 2
    assert capsys.readouterr() == ("", f"dfganext: {sentence}\n")


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"dfganext {__version__}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["predict", "--help"], ["score", "-h"]])
def test_help_has_examples_and_exit_codes(capsys, words):
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    out = re.sub(ANSI, "", out)  # FORCE_COLOR and GITHUB_ACTIONS colour it
    assert err == ""
    for part in ("Usage: dfganext", "Examples", "\n   dfganext ", "Exit codes", "some images could not be read"):
        assert part in out


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["predict", "-h"], 0), (["predict", "nowhere.png"], 2)])
def test_help_and_a_mistyped_path_do_not_wait_for_slow_imports(words, code):
    check = (
        "import sys; from dfganext.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'mlflow', 'ray', 'pandas', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", check, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr


def test_ctrl_c_exits_with_130(here, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read", interrupt)
    assert predict("images") == 130


def test_a_bug_keeps_its_traceback(here, monkeypatch):
    monkeypatch.setattr(cli, "read", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict("images")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_colours_and_progress_are_for_terminals_only(here, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert predict("images") == 1
    piped, err = capsys.readouterr()
    assert err == "" and "\x1b" not in piped

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert predict("images") == 1
    assert capsys.readouterr().out == piped
    assert "100%" in sys.stderr.getvalue()

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert predict("images") == 1
    shown = sys.stdout.getvalue()
    assert "\x1b[" in shown and "100%" in shown
    plain = re.sub(ANSI, "", shown)
    assert all(line in plain for line in piped.splitlines())

    sys.stdout = Terminal()
    assert predict("images", "--json") == 1
    assert [row["path"] for row in json.loads(sys.stdout.getvalue())] == PATHS


@pytest.mark.parametrize("link", [False, True])
def test_no_image_is_overwritten(here, capsys, link):
    before = {path: path.read_bytes() for path in (here / "images").rglob("*") if path.is_file()}
    target = "images"
    if link:
        Path("shown").symlink_to("images")
        target = "shown"
    for words in (["--heatmaps", target], ["--csv", f"{target}/a.png"]):
        assert predict("images", *words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{words[0]}: {target}/a.png is one of the images" in err
    assert before == {path: path.read_bytes() for path in (here / "images").rglob("*") if path.is_file()}


def test_an_earlier_csv_stays_if_no_model_loads(here):
    Path("rows.csv").write_text("of last week\n")
    assert cli.main(["predict", "images", "--csv", "rows.csv", "--model", "nowhere"]) == 2
    assert Path("rows.csv").read_text() == "of last week\n"


def test_each_csv_row_is_on_disk_at_once(here, monkeypatch):
    read, seen = cli.read, []
    monkeypatch.setattr(cli, "BATCH_FILES", 1)
    monkeypatch.setattr(
        cli, "read", lambda path: seen.append(len(Path("rows.csv").read_text().splitlines())) or read(path)
    )
    assert predict("images", "--csv", "rows.csv") == 1
    assert seen == [1, 2, 3, 4, 5]


NAMES = {
    "car\rriage.png": "car\\rriage.png",
    "line\nfeed.png": "line\\nfeed.png",
    "escape\x1b[2J.png": "escape\\x1b[2J.png",
    "csi\x9b2J.png": "csi\\x9b2J.png",
    "separator\u2028.png": "separator\\u2028.png",
    "日本.png": "日本.png",
    'quote".png': 'quote".png',
    os.fsdecode(b"caf\xe9.png"): "caf\\udce9.png",
}
"""File names, and how every output writes them."""


def test_control_characters_in_names_are_escaped(here, capsysbinary):
    folder = here / "odd"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(png(0, 1))
    expected = sorted(f"odd/{name}" for name in NAMES.values())
    assert predict("odd", "--json", "--csv", "rows.csv", "--heatmaps", "maps") == 0
    rows = json.loads(capsysbinary.readouterr().out.decode())
    assert sorted(row["path"] for row in rows) == expected
    assert all(row["heatmap"].startswith("maps/") for row in rows)
    assert sorted(pd.read_csv("rows.csv").path) == expected
    with Path("rows.csv").open(newline="", encoding="utf-8") as stream:
        assert sorted(row["path"] for row in csv.DictReader(stream)) == expected
    assert predict("odd") == 0
    out = capsysbinary.readouterr().out.decode()
    assert sorted(line.partition(".png")[0] for line in out.splitlines()[1:]) == [
        path.removesuffix(".png") for path in expected
    ]
    assert predict("odd/no\x1b[2J\nwhere.png") == 2
    assert capsysbinary.readouterr().err.startswith(b"dfganext: odd/no\\x1b[2J\\nwhere.png does not exist")


@pytest.mark.slow
def test_another_encoding_than_utf8(here, monkeypatch):
    """Characters that the encoding lacks: JSON stays valid, the table shows escapes."""
    (here / "日本é😀.png").write_bytes(png(0, 1))
    said = []
    for more in ([], ["--json"]):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["predict", "日本é😀.png", "--model", "model", *more]) == 0
        stdout.flush()
        said.append(stdout.buffer.getvalue())
    assert "\\u65e5\\u672cé\\U0001f600.png" in said[0].decode("latin-1")
    assert json.loads(said[1])[0]["path"] == "日本é😀.png"


def test_long_names(here, capsys):
    name = "é" * 125
    Path(f"{name}.png").write_bytes(png(0, 1))
    Path(f"{name}.bmp").write_bytes(png(0, 1))
    assert predict(f"{name}.png", f"{name}.bmp", "--heatmaps", "maps") == 0
    assert sorted(path.name for path in Path("maps").iterdir()) == [f"{'é' * 100}-2.png", f"{'é' * 100}.png"]
    assert predict("x" * 300) == 2
    assert "cannot be accessed (File name too long)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_reported_in_one_sentence(here, capsys):
    assert predict("images", "--csv", "/dev/full") == 2
    assert "--csv: /dev/full cannot be written (No space left on device)" in capsys.readouterr().err
    Path("maps").mkdir()
    Path("maps/a.png").symlink_to("/dev/full")
    assert predict("images/a.png", "--heatmaps", "maps") == 2
    assert "--heatmaps: maps/a.png cannot be written (No space left on device)" in capsys.readouterr().err
    command = [str(Path(sys.executable).parent / "dfganext"), "predict", "images/a.png", "--model", "model"]
    for words in ([], ["--json"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([*command, *words], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert done.stderr == ("dfganext: Cannot write to stdout ([Errno 28] No space left on device).\n")


def test_a_pipe_is_a_row_with_an_error(here, capsys):
    os.mkfifo("images/pipe.jpg")
    odd = os.fsdecode(b"images/caf\xe9.png")
    Path(odd).write_bytes(png(0, 1))
    assert predict("images/pipe.jpg", odd, "--json") == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first["path"] == "images/caf\\udce9.png" and first["error"] is None
    assert second["error"] == "not a regular file"


@pytest.mark.slow
def test_the_command_as_installed(here):
    """In a process of its own, as a shell runs it, without a terminal or a champion."""
    command = Path(sys.executable).parent / "dfganext"
    done = subprocess.run([command, "predict", "images", "--json", "--model", "model"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""
    assert [row["path"] for row in json.loads(done.stdout)] == PATHS


def test_images_without_a_suffix_are_recognised_by_their_content(tmp_path):
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 20)).save(buffer, format=kind)
        (tmp_path / kind).write_bytes(buffer.getvalue())
    (tmp_path / "text").write_text("P6 is what this file is not, nor is it BM")
    assert [path.name for path in cli.find_images([str(tmp_path)])] == sorted(
        ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
    )


@pytest.fixture
def labelled(here):
    """Six images of each class, and a broken one."""
    for name, label in (("real", 0), ("fake", 1)):
        (here / "labelled" / name).mkdir(parents=True)
        for index in range(6):
            (here / "labelled" / name / f"{index}.png").write_bytes(png(label, 10 * label + index))
    (here / "labelled" / "real" / "broken.jpg").write_bytes(b"no image")
    return here / "labelled"


def test_evaluate_measures_a_labelled_folder(labelled, capsys):
    assert cli.main(["evaluate", "labelled", "--model", "model", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert predict("labelled", "--json") == 1
    rows = [row for row in json.loads(capsys.readouterr().out) if row["error"] is None]
    right = [row["label"] == Path(row["path"]).parent.name for row in rows]
    assert (found["images"], found["real"], found["fake"], found["threshold"]) == (12, 6, 6, 0.45)
    assert found["accuracy"] == pytest.approx(sum(right) / 12)
    low, high = found["intervals"]["accuracy"]
    assert low < found["accuracy"] <= high
    unsure = [row["decision"] == "unsure" for row in rows]
    assert found["decisions"]["unsure"] == pytest.approx(sum(unsure) / 12)
    assert found["left_out"] is None
    assert [(row["source"], row["reason"]) for row in found["refused"]] == [
        ("labelled/real/broken.jpg", "not an image")
    ]


def test_evaluate_counts_each_image_once_and_ignores_files_that_are_none(labelled, capsys):
    (labelled / "real" / "broken.jpg").unlink()
    for name, text in (
        (".DS_Store", "x"),
        ("labels.csv", "path,label"),
        ("real/README", "These are real."),
        ("fake/empty", ""),
    ):
        (labelled / name).write_text(text)
    assert cli.main(["evaluate", "labelled/fake", "labelled", "--model", "model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["real"], found["fake"]) == (6, 6)
    assert found["refused"] == []
    shutil.copyfile(labelled / "fake" / "1.png", labelled / "an image without a class")
    assert cli.main(["evaluate", "labelled/fake", "labelled", "--model", "model", "--json"]) == 1
    assert [row["reason"] for row in json.loads(capsys.readouterr().out)["refused"]] == ["neither real nor fake"]


def test_evaluate_takes_labels_from_any_of_overlapping_folders_and_counts_links(labelled, capsys):
    (labelled / "real" / "broken.jpg").unlink()
    (labelled / "real" / "part").mkdir()
    (labelled / "real" / "0.png").rename(labelled / "real" / "part" / "0.png")
    (labelled / "real" / "again.png").symlink_to(labelled / "real" / "1.png")
    assert cli.main(["evaluate", "labelled/real/part", "labelled", "--model", "model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["real"], found["fake"]) == (7, 6)


def test_evaluate_prints_a_table(labelled, capsys):
    (labelled / "real" / "broken.jpg").unlink()
    assert cli.main(["evaluate", "labelled/fake", "--model", "model", "--threshold", "0"]) == 0
    out = capsys.readouterr().out
    assert "0 real and 6 fake images; fake where p_fake > 0" in out
    assert re.search(r"fakes found .* 1\.0000 +0\.\d+ … 1\.0000", out)
    assert re.search(r"real images called fake .* -", out)
    assert "no list of its training images" in out


def test_evaluate_leaves_out_near_duplicates_of_training_images(labelled, here, capsys):
    """A registered version has the list of its training images beside the detector."""
    from dfganext.data import discovery, manifest

    path = labelled / "fake" / "3.png"
    row = manifest.read_image(discovery.SourceFile(path, str(path), Path("fake/3.png")), 64, 16).row
    shutil.copytree(here / "model", here / "version" / "artifacts" / "detector")
    (here / "version" / "MLmodel").touch()
    pd.DataFrame([{"group": 0, **row}])[["sha256", "group", "phash", "phash_mirrored"]].to_csv(
        here / "version" / "artifacts" / "trained_on.csv", index=False
    )
    cli.main(["evaluate", "labelled", "--model", "version/artifacts/detector", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["left_out"]) == (11, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["images"], "There is no usable image below folders named real or fake in images"),
    ],
)
def test_evaluate_explains_what_it_needs(here, capsys, words, message):
    assert cli.main(["evaluate", *words, "--model", "model"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_predicts_the_same(here, capsys):
    predict("images", "--json")
    expected = json.loads(capsys.readouterr().out)
    assert cli.main(["export", "champion", "--model", "model"]) == 0
    assert capsys.readouterr().out == "champion is written: dfganext predict photo.jpg --model champion\n"
    cli.main(["predict", "images", "--json", "--model", "champion"])
    assert json.loads(capsys.readouterr().out) == expected

    assert cli.main(["export", "onnx", "--format", "onnx", "--model", "model"]) == 0
    assert capsys.readouterr().out == "onnx is written: python onnx/predict.py photo.jpg\n"
    readable = [row for row in expected if row["error"] is None]
    command = [sys.executable, "onnx/predict.py", *(row["path"] for row in readable)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line, row in zip(done.stdout.splitlines(), readable, strict=True):
        found = json.loads(line)
        assert found["p_fake"] == pytest.approx(row["p_fake"], abs=1e-4)
        assert {name: found[name] for name in ("path", "label", "decision")} == {
            name: row[name] for name in ("path", "label", "decision")
        }


def test_an_export_needs_a_model_and_a_new_folder(here, capsys):
    assert cli.main(["export", "images", "--model", "model"]) == 2
    assert "images exists already and is not an empty folder" in capsys.readouterr().err
    assert cli.main(["export", "new"]) == 2
    assert "There is no model models:/df-ganext@champion" in capsys.readouterr().err and not Path("new").exists()


def test_a_model_of_the_sample_says_so(here, capsys):
    result = {"dataset": {"name": SAMPLE}, "metrics": [{"type": "accuracy", "value": 0.97}]}
    Path("model/README.md").write_text(f"---\n{json.dumps({'model-index': [{'results': [result]}]})}\n---\n")
    assert predict("images/a.png") == 0
    assert SAMPLE_WARNING in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "words"), [("nowhere", "does not exist"), ("model/config.json", "is a file: give its folder")]
)
def test_a_path_that_is_no_model(here, capsys, model, words):
    assert cli.main(["predict", "images/a.png", "--model", model]) == 2
    assert words in capsys.readouterr().err
