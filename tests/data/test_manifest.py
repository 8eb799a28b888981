"""The manifest: right rows for good images, a named reason for every other file, the same result for any number of workers."""

import hashlib
import io
import itertools
import os
import socket
import zipfile
import zlib
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from dfganext import files
from dfganext.data import manifest, sources
from dfganext.errors import UserError


@pytest.fixture
def built(tmp_path, download):
    """Collect and build from tmp_path/data into tmp_path/raw."""

    def call(workers: int = 2, **changes):
        settings = download(**changes)
        collection = sources.collect(settings, tmp_path / "data", tmp_path / "work")
        return manifest.build(collection, tmp_path / "raw", settings, workers)

    return call


@pytest.fixture
def put(tmp_path):
    """Write a file below tmp_path/data."""

    def call(path: str, data: bytes) -> Path:
        place = tmp_path / "data" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return place

    return call


def reasons(result: manifest.Built) -> dict[str, str]:
    return dict(zip(result.rejects["source"], result.rejects["reason"], strict=True))


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_columns_of_a_row(built, put, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    tables = [[3] * 64, [8] * 63 + [72]]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.fromarray(pixels).save(buffer, "JPEG", qtables=tables, exif=rotated)
    data = buffer.getvalue()
    source = put("train/real/1.png", data)  # a JPEG under a wrong name
    put("fake/2.png", (tmp_path / "data/train/real/1.png").read_bytes() + b" ")
    result = built()
    row = result.manifest.set_index("path").loc["real/train/1.png"].to_dict()
    decoded = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    assert row == {
        "label": "real",
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": str(imagehash.phash(decoded, hash_size=16)),
        "phash_mirrored": str(imagehash.phash(ImageOps.mirror(decoded), hash_size=16)),
        "width": 24,
        "height": 40,
        "format": "JPEG",
        "mode": "RGB",
        "quantisation": "3 9",
        "bytes": len(data),
    }
    assert len(row["phash"]) == 64 and row["phash"] != row["phash_mirrored"]
    assert list(result.manifest["path"]) == ["fake/2.png", "real/train/1.png"]
    assert (tmp_path / "raw/real/train/1.png").read_bytes() == data
    assert (tmp_path / "raw/real/train/1.png").stat().st_ino == source.stat().st_ino
    assert result.counts == {"real": 1, "fake": 1} and result.rejects.empty


def test_every_bad_file_gets_a_reason_and_affects_no_other(built, put, picture, tmp_path):
    put("real/good.png", picture(1))
    put("fake/good.png", picture(2))
    bomb = bytearray(picture(3))
    bomb[16:24] = (50_000).to_bytes(4) * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    jpeg = picture(4, kind="JPEG")
    bad = {
        "real/empty.jpg": (b"", "empty"),
        "real/truncated.jpg": (jpeg[: len(jpeg) // 2], "damaged or truncated"),
        "fake/truncated.png": (picture(5)[:-400], "damaged or truncated"),
        "real/notes.txt": (b"notes about the set", "not an image"),
        "real/vector.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        "real/1x1.png": (picture(6, side=1), "too small"),
        "fake/bomb.png": (bytes(bomb), "too large"),
        "real/large.png": (picture(7, side=1001), "too large"),
        "elsewhere/image.png": (picture(8), "neither real nor fake"),
        "image.png": (picture(9), "neither real nor fake"),
        "real/.DS_Store": (b"x", "not data"),
        "real/Thumbs.db": (b"x", "not data"),
        "__MACOSX": (b"x", "not data"),
        "fake/._good.png": (b"x", "not data"),
        "real/same.png": (picture(10), "in both classes"),
        "real/same again.png": (picture(10), "in both classes"),
        "fake/same.png": (picture(10), "in both classes"),
    }
    for path, (data, _) in bad.items():
        put(path, data)
    with zipfile.ZipFile(tmp_path / "data/real.zip", "w") as file:
        file.writestr("../up.png", picture(11))
        file.writestr("fine.png", picture(12))
    result = built()
    expected = {f"data/{path}": reason for path, (_, reason) in bad.items()}
    assert reasons(result) == expected | {"data/real.zip/../up.png": "archive member"}
    assert list(result.manifest["path"]) == ["fake/good.png", "real/fine.png", "real/good.png"]
    assert listed(tmp_path / "raw") == list(result.manifest["path"])
    details = result.rejects.set_index("source")["detail"]
    same = [detail for source, detail in details.items() if "same" in source]
    assert same == [f"images of both classes have its sha256, {hashlib.sha256(picture(10)).hexdigest()}"] * 3
    assert "2500000000 pixels" in details["data/fake/bomb.png"]


def test_links_are_followed_inside_the_tree_only(built, put, picture, tmp_path):
    put("real/1.png", picture(1))
    put("fake/2.png", picture(2))
    put("pool/3.png", picture(3))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "4.png").write_bytes(picture(4))
    data = tmp_path / "data"
    links = {
        "real/inside.png": "../pool/3.png",
        "real/outside.png": outside / "4.png",
        "fake/outside": outside,
        "real/nowhere.png": "nothing",
        "real/self.png": "self.png",
        "real/loop": "..",
        "fake/pool": "../pool",
    }
    for name, target in links.items():
        (data / name).symlink_to(target)
    result = built()
    assert list(result.manifest["path"]) == ["fake/2.png", "real/1.png", "real/inside.png"]
    assert reasons(result) == {
        "data/pool/3.png": "neither real nor fake",
        "data/real/outside.png": "link",
        "data/fake/outside": "link",
        "data/real/nowhere.png": "unreadable",
        "data/real/self.png": "unreadable",
        "data/real/loop": "link",
        "data/fake/pool": "link",
    }
    assert not (tmp_path / "raw/real/inside.png").is_symlink()


def test_data_that_dvc_keeps_as_links_into_its_cache(built, put, picture, tmp_path):
    put("fake/2.png", picture(2))
    cached = tmp_path / ".dvc/cache/files/md5/ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(picture(1))
    (tmp_path / "data/real").mkdir()
    (tmp_path / "data/real/1.png").symlink_to(cached)
    assert list(built().manifest["path"]) == ["fake/2.png", "real/1.png"]


def test_pipes_and_sockets_do_not_block(built, put, picture, tmp_path):
    put("real/1.png", picture(1))
    put("fake/2.png", picture(2))
    os.mkfifo(tmp_path / "data/real/pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(tmp_path / "data")  # a socket's path must be short
        try:
            listening.bind("socket.png")
        finally:
            os.chdir(here)
        assert set(reasons(built())) == {"data/real/pipe.png", "data/socket.png"}


def test_a_file_without_read_permission(built, put, picture, monkeypatch):
    put("real/1.png", picture(1))
    put("real/secret.png", picture(3))
    put("fake/2.png", picture(2))
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "secret.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    result = built()
    assert reasons(result) == {"data/real/secret.png": "unreadable"}
    assert "Permission denied" in result.rejects["detail"][0]


def test_names_that_collide_are_numbered(built, put, picture, tmp_path):
    for seed, path in enumerate(["a/real/1.png", "real/a/1.png", "REAL/A/1.png", "x/real/a", "real/x/A"]):
        put(path, picture(seed))
    put("fake/\u00e9 new\nline.png", picture(9))
    put("fake/lines\u2028\x85\r.png", picture(11))
    put("fake/broken\r\x9b.png", b"broken")
    os.close(os.open(os.fsencode(tmp_path / "data/fake/") + b"/\xff.png", os.O_CREAT | os.O_WRONLY))
    (tmp_path / "data/fake").joinpath(os.fsdecode(b"\xff.png")).write_bytes(picture(10))
    result = built()
    assert list(result.manifest["path"]) == [
        "fake/_udcff.png",
        "fake/lines_u2028_x85_r.png",
        "fake/\u00e9 new_nline.png",
        "real/A/1.png",
        "real/a/1-2.png",
        "real/a/1-3.png",
        "real/x/A",
        "real/x/a-2",
    ]
    assert listed(tmp_path / "raw") == sorted(result.manifest["path"])
    for row in result.manifest.itertuples():
        assert hashlib.sha256((tmp_path / "raw" / row.path).read_bytes()).hexdigest() == row.sha256
    files.write_table(tmp_path / "m.csv", result.manifest)
    assert manifest.read(tmp_path / "m.csv").equals(result.manifest)
    assert list(result.rejects.source) == ["data/fake/broken\\r\\x9b.png"]


@pytest.mark.parametrize(
    "name",
    [b"\xff" * 60 + b".png", "\u3042".encode() * 83 + b".jpg", b"a" * 251 + b".png"],
    ids=["bytes", "utf-8", "ascii"],
)
def test_long_names_are_shortened(built, put, picture, tmp_path, name):
    """A byte that is not UTF-8 becomes six characters, and file systems take 255 bytes."""
    put("fake/1.png", picture(1))
    put("real/1.png", picture(2))
    for seed, folder in enumerate(("a", "b")):
        place = put(f"real/{folder}/1.png", picture(3 + seed)).with_name(os.fsdecode(name))
        place.with_name("1.png").rename(place)
    result = built()
    assert len(result.manifest) == 4 and len(result.rejects) == 0
    assert listed(tmp_path / "raw") == sorted(result.manifest["path"])
    for path in result.manifest["path"][2:]:
        assert len(Path(path).name.encode()) <= 240 and Path(path).suffix in (".png", ".jpg")


def test_identical_images_of_one_class_all_stay(built, put, picture):
    put("real/1.png", picture(1))
    put("real/copy.png", picture(1))
    put("fake/2.png", picture(2))
    result = built()
    assert len(result.manifest) == 3
    assert result.rejects.empty


@pytest.mark.parametrize(
    ("folder", "words"), [("fake", "0 usable real and 1 usable fake"), ("x", "0 usable real and 0 usable fake")]
)
def test_a_missing_class_is_an_error_with_counts_and_the_table_of_rejects(built, put, picture, tmp_path, folder, words):
    put(f"{folder}/1.png", picture(1))
    put("real/broken.png", b"broken")
    result = built()
    with pytest.raises(UserError, match=words + r".*rejects\.csv for the \d files refused"):
        manifest.require_both_classes(result, tmp_path / "rejects.csv")
    put("real/1.png", picture(3))
    put("fake/1.png", picture(1))
    manifest.require_both_classes(built(), tmp_path / "rejects.csv")


def test_the_same_bytes_for_any_number_of_workers(built, put, picture, tmp_path):
    for seed, label in itertools.product(range(40), ("real", "fake")):
        put(
            f"{label}/{seed}.png",
            picture(seed if seed % 7 == 0 else 100 * (label == "real") + seed)[: 100 if seed % 9 == 0 else None],
        )
    outputs = set()
    for workers in (0, 1, 3, 8):
        result = built(workers)
        files.write_table(tmp_path / "m.csv", result.manifest)
        files.write_table(tmp_path / "r.csv", result.rejects)
        outputs.add(
            ((tmp_path / "m.csv").read_bytes(), (tmp_path / "r.csv").read_bytes(), tuple(listed(tmp_path / "raw")))
        )
    assert len(outputs) == 1


def test_copies_where_there_are_no_hard_links(built, put, picture, tmp_path, monkeypatch):
    source = put("real/1.png", picture(1))
    put("fake/2.png", picture(2))

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    built()
    assert (tmp_path / "raw/real/1.png").read_bytes() == picture(1)
    assert (tmp_path / "raw/real/1.png").stat().st_ino != source.stat().st_ino


def test_the_raw_folder_is_emptied_first(built, put, picture, tmp_path):
    put("real/1.png", picture(1))
    put("fake/2.png", picture(2))
    (tmp_path / "raw/real/old").mkdir(parents=True)
    (tmp_path / "raw/real/old/0.png").touch()
    built()
    assert listed(tmp_path / "raw") == ["fake/2.png", "real/1.png"]


def test_text_stays_text(built, put, picture, tmp_path):
    put("real/001.png", picture(1))
    put("fake/NA.png", picture(2))
    table = built().manifest
    table.loc[0, "sha256"], table.loc[1, "sha256"] = "0012", "NA"
    files.write_table(tmp_path / "deep/m.csv", table)
    again = manifest.read(tmp_path / "deep/m.csv")
    assert again.equals(table)
    assert list(again["quantisation"]) == ["", ""]
    assert b"\r" not in (tmp_path / "deep/m.csv").read_bytes()


def test_a_manifest_of_no_rows_keeps_its_types(built, put, tmp_path):
    put("real/notes.txt", b"notes")
    result = built()
    files.write_table(tmp_path / "m.csv", result.manifest)
    assert manifest.read(tmp_path / "m.csv").dtypes.equals(result.manifest.dtypes)


@pytest.mark.parametrize("content", [None, "", "path,label\nreal/1.png,real\n"])
def test_a_missing_or_foreign_manifest(tmp_path, content):
    if content is not None:
        (tmp_path / "m.csv").write_text(content)
    with pytest.raises(UserError, match=r"m\.csv is .*dvc repro"):
        manifest.read(tmp_path / "m.csv")
