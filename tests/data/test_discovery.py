"""Finding images and the files of a source, and reading them."""

import os
from pathlib import Path, PurePosixPath

import pytest
from helpers import png

from dfganext.data import discovery
from dfganext.data.discovery import (
    Found,
    Unread,
    files_of_source,
    find_images,
    images_below,
    in_order,
    label_of,
    printable,
    read,
)


def test_images_are_sorted_by_their_whole_paths(tmp_path):
    names = ("a/b/1.png", "a-b/1.png", "a0b.png", "a.png", "b/c/d/e.JPG", "b.c/2.png", "Z.png", "ü/1.png", "a/b.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(0, 1))
    (tmp_path / "b" / "notes.txt").write_text("P6 is what this file is not")
    (tmp_path / "b" / "unnamed").write_bytes(png(0, 1))
    os.mkfifo(tmp_path / "pipe.png")
    expected = sorted(str(tmp_path / name) for name in (*names, "b/unnamed"))
    size = len(png(0, 1))
    found = list(images_below(tmp_path))
    assert found == [Found(path, size, Path(path).stat().st_mtime_ns) for path in expected]


def test_links_to_files_are_followed_dangling_links_are_listed_and_links_to_folders_skipped(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(png(0, 1))
    for name, target in {
        "good.png": "../elsewhere",
        "unnamed": "../elsewhere",
        "broken.PNG": "nowhere",
        "notes.txt": "nowhere",
        "loop.jpg": "loop.jpg",
        "deep/round": "..",
        "deep/folder.png": "..",
    }.items():
        (folder / name).symlink_to(target)
    here = len(png(0, 1)), (tmp_path / "elsewhere").stat().st_mtime_ns
    expected = {"broken.PNG": (0, None), "good.png": here, "loop.jpg": (0, None), "unnamed": here}
    assert list(images_below(folder)) == [Found(str(folder / name), *told) for name, told in expected.items()]
    assert find_images([str(folder)]) == [folder / name for name in expected]
    assert read(folder / "broken.PNG") == Unread("cannot be read (No such file or directory)", temporary=True)
    assert isinstance(read(folder / "loop.jpg"), Unread)


def test_a_folder_that_cannot_be_listed_is_listed_itself(tmp_path):
    def entries(folder):
        if folder.endswith("closed/"):
            raise PermissionError(13, "Permission denied")
        return [Found(f"{folder}z.png", 1), Found(f"{folder}closed/", 0), Found(f"{folder}a.png", 1)]

    assert [found.path for found in in_order("in/", entries)] == ["in/a.png", "in/closed", "in/z.png"]


def test_read_gives_the_reason_of_a_failure(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"bytes")
    assert read(tmp_path / "a.png") == read(str(tmp_path / "a.png")) == b"bytes"
    assert read(tmp_path / "b.png") == Unread("cannot be read (No such file or directory)", temporary=True)
    assert read(tmp_path) == Unread("not a regular file", temporary=False)
    (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
    monkeypatch.setattr(discovery, "MAX_FILE_BYTES", 2**20)
    assert read(tmp_path / "large.png") == Unread(discovery.TOO_LARGE, temporary=False)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert read(tmp_path) == Unread("cannot be read (Permission denied)", temporary=True)


@pytest.mark.parametrize("depth", [3000])
def test_any_depth(depth):
    def entries(folder):
        return [Found(f"{folder}x.png", 1), *([Found(f"{folder}d/", 0)] if len(folder) < 2 * depth else [])]

    assert sum(1 for _ in in_order("d/", entries)) == depth


def test_printable_names_are_one_line_of_utf8():
    names = {
        "plain \u00e9.png": "plain \u00e9.png",
        "car\rriage": "car\\rriage",
        "line\nfeed\0": "line\\nfeed\\x00",
        "escape\x1b[2J\x9b": "escape\\x1b[2J\\x9b",
        "lines\u2028and\u2029paragraphs\x85": "lines\\u2028and\\u2029paragraphs\\x85",
        os.fsdecode(b"caf\xe9"): "caf\\udce9",
    }
    assert {name: printable(name) for name in names} == names
    every = "".join(map(chr, range(0x3000)))
    assert len(printable(every).splitlines()) == 1


def outcome(found) -> tuple[dict[str, str | None], dict[str, str]]:
    """{source: class} of the files and {source: reason} of the rejects."""
    files, rejects = found
    return {file.source: label_of(file.path) for file in files}, {one.source: one.reason for one in rejects}


def test_files_of_an_unpacked_archive_keep_its_place_in_the_source(tmp_path):
    (tmp_path / "x" / "deep").mkdir(parents=True)
    (tmp_path / "x" / "deep" / "a\n.txt").write_bytes(b"any file")
    (file,), rejects = files_of_source(tmp_path / "x", "data/real/x.zip", above=PurePosixPath("real/x"))
    assert (file.path, file.source) == (PurePosixPath("real/x/deep/a\n.txt"), "data/real/x.zip/deep/a\\n.txt")
    assert file.file.read_bytes() == b"any file" and rejects == []


def test_a_folder_of_a_source_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "1.png").touch()
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("real"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert outcome(files_of_source(tmp_path, "data")) == ({"data/fake/1.png": "fake"}, {"data/real": "unreadable"})
