"""Arrays of resized images: the right pixels in the right rows, the same bytes for any number of workers."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfganext.data import arrays
from dfganext.errors import UserError


@pytest.fixture
def raw(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(90):
        label = ("real", "fake")[number % 2]
        path = f"{label}/{number:03}.png"
        (tmp_path / label).mkdir(exist_ok=True)
        shape = (40, 40 if number % 3 else 56, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / path)
        rows.append((path, label, ("train", "validation", "test")[number % 5 % 3], number // 4))
    return tmp_path, pd.DataFrame(rows, columns=["path", "label", "split", "group"])


def test_rows_hold_the_pixels_that_pillow_gives(raw, tmp_path, shipped):
    folder, split = raw
    arrays.write(split, folder, tmp_path / "out", 32, shipped.resize, workers=2)
    for name in ("train", "validation", "test"):
        images = arrays.read(tmp_path / "out", name)
        assert images.paths == list(split[split.split == name].path) and images.pixels.dtype == np.uint8
        assert images.groups.tolist() == list(split[split.split == name].group)
        assert [("real", "fake")[label] for label in images.labels] == list(split[split.split == name].label)
        for path, pixels in zip(images.paths, images.pixels, strict=True):
            image = Image.open(io.BytesIO((folder / path).read_bytes()))
            left = (image.width - 40) // 2
            expected = image.crop((left, 0, left + 40, 40)).resize((32, 32), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic"])
def test_bytes_do_not_depend_on_the_workers(raw, tmp_path, shipped, interpolation):
    folder, split = raw
    resize = replace(shipped.resize, interpolation=interpolation)
    for workers in (0, 1, 4):
        arrays.write(split, folder, tmp_path / f"out{workers}", 32, resize, workers)
    for file in (tmp_path / "out0").iterdir():
        assert file.read_bytes() == (tmp_path / "out1" / file.name).read_bytes()
        assert file.read_bytes() == (tmp_path / "out4" / file.name).read_bytes()


def test_a_file_is_what_numpy_saves(raw, tmp_path, shipped):
    folder, split = raw
    split = split[split.split != "validation"]  # no row at all
    for size in (40, 32):  # a view into the decoded image, and an array of its own
        arrays.write(split, folder, tmp_path / "out", size, shipped.resize, workers=2)
        for name in ("train", "validation", "test"):
            saved = io.BytesIO()
            np.save(saved, np.array(arrays.read(tmp_path / "out", name).pixels))
            assert (tmp_path / "out" / f"{name}.npy").read_bytes() == saved.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(raw, tmp_path, shipped):
    folder, split = raw
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train.npy").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\): make room"):
        arrays.write(split, folder, tmp_path / "out", 32, shipped.resize, workers=2)


def test_only_selects_one_class(raw, tmp_path, shipped):
    folder, split = raw
    arrays.write(split, folder, tmp_path / "out", 40, shipped.resize, workers=1)
    train = arrays.read(tmp_path / "out", "train")
    assert all(train.paths[row].startswith("real/") for row in train.only(0))
    assert len(train.only(0)) + len(train.only(1)) == len(train.labels)


def test_missing_files_are_named(raw, tmp_path, shipped):
    folder, split = raw
    with pytest.raises(UserError, match="dvc repro resize"):
        arrays.read(tmp_path / "nothing", "train")
    (folder / split.path[7]).unlink()
    with pytest.raises(UserError, match=split.path[7]):
        arrays.write(split, folder, tmp_path / "out", 32, shipped.resize, workers=2)
