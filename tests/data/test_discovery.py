import os
from pathlib import Path

import pytest
from helpers import png

from dfganext.data import discovery as inputs
from dfganext.data.discovery import Found, Unread


def test_images_come_in_the_order_of_their_whole_paths(tmp_path):
    names = ("a/b/1.png", "a-b/1.png", "a0b.png", "a.png", "b/c/d/e.JPG", "b.c/2.png", "Z.png", "ü/1.png", "a/b.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(0, 1))
    (tmp_path / "b" / "notes.txt").write_text("P6 is what this file is not")
    (tmp_path / "b" / "unnamed").write_bytes(png(0, 1))
    os.mkfifo(tmp_path / "pipe.png")
    expected = sorted(str(tmp_path / name) for name in (*names, "b/unnamed"))
    size = len(png(0, 1))
    found = list(inputs.images_below(tmp_path))
    assert found == [Found(path, size, Path(path).stat().st_mtime_ns) for path in expected]


def test_links_to_files_are_followed_broken_ones_told_and_those_to_folders_left_out(tmp_path):
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
    assert list(inputs.images_below(folder)) == [Found(str(folder / name), *told) for name, told in expected.items()]
    assert inputs.find_images([str(folder)]) == [folder / name for name in expected]
    assert inputs.read(folder / "broken.PNG") == Unread("cannot be read (No such file or directory)", temporary=True)
    assert isinstance(inputs.read(folder / "loop.jpg"), Unread)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path):
    def entries(folder):
        if folder.endswith("closed/"):
            raise PermissionError(13, "Permission denied")
        return [Found(f"{folder}z.png", 1), Found(f"{folder}closed/", 0), Found(f"{folder}a.png", 1)]

    assert [found.path for found in inputs.in_order("in/", entries)] == ["in/a.png", "in/closed", "in/z.png"]


def test_read_says_why_not(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"bytes")
    assert inputs.read(tmp_path / "a.png") == inputs.read(str(tmp_path / "a.png")) == b"bytes"
    assert inputs.read(tmp_path / "b.png") == Unread("cannot be read (No such file or directory)", temporary=True)
    assert inputs.read(tmp_path) == Unread("not a regular file", temporary=False)
    monkeypatch.setattr(inputs, "MAX_FILE_BYTES", 4)
    assert inputs.read(tmp_path / "a.png") == Unread("more than 512 MiB", temporary=False)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert inputs.read(tmp_path) == Unread("cannot be read (Permission denied)", temporary=True)


@pytest.mark.parametrize("depth", [3000])
def test_depth_is_no_matter(depth):
    def entries(folder):
        return [Found(f"{folder}x.png", 1), *([Found(f"{folder}d/", 0)] if len(folder) < 2 * depth else [])]

    assert sum(1 for _ in inputs.in_order("d/", entries)) == depth
