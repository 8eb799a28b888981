"""Archives: good members are unpacked, bad ones are named, and nothing is written outside the folder."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tracemalloc
import zipfile
from contextlib import nullcontext, suppress

import pytest

from dfganext.data import archives
from dfganext.errors import UserError


def tar_member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, link
    return member, io.BytesIO(data)


def tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as file:
        for member, data in members:
            file.addfile(member, data)
    return path


def written(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
def test_every_kind_of_archive(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("real/", b"")
            file.writestr("real/1.png", b"one")
    else:
        mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "tbz2": "w:bz2", "xz": "w:xz", "txz": "w:xz", "tar": "w"}
        tar(
            path,
            tar_member("real", kind=tarfile.DIRTYPE),
            tar_member("real/1.png", b"one"),
            mode=mode[suffix.split(".")[-1]],
        )
    assert archives.extract(path, tmp_path / "out") == []
    assert written(tmp_path / "out") == {"real/1.png": b"one"}
    assert archives.stem(path.name) == "a"


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.npz", "w") as file:
        file.writestr("inner.npy", b"numbers")
    inner = (tmp_path / "weights.npz").read_bytes()
    members = {"real/1.png": b"one", "weights.npz": inner}
    path = tar(tmp_path / "a.tar", *[tar_member(name, data) for name, data in members.items()])
    assert archives.extract(path, tmp_path / "out") == []
    assert written(tmp_path / "out") == members


def test_suffixes_tell_archives():
    assert archives.stem("a.jpg") is None
    assert archives.stem(".zip") is None
    assert archives.stem("A.TAR.GZ") == "A"


NAMES = ["../up", "real/../../up", "/tmp/up", "C:\\up", "..\\up", "\\up", "real/..", "c:up"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_outside_the_target_are_refused_and_the_others_kept(tmp_path, name, kind):
    path, out = tmp_path / f"in/a.{kind}", tmp_path / "in/deep/out"
    path.parent.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"bad")
            file.writestr("real/1.png", b"good")
    else:
        tar(path, tar_member(name, b"bad"), tar_member("real/1.png", b"good"))
    (reject,) = archives.extract(path, out, "data/a")
    assert reject.source == f"data/a/{name}"
    assert reject.reason == "archive member"
    assert "leads out" in reject.detail
    assert written(out) == {"real/1.png": b"good"}
    assert sorted(found.name for found in (tmp_path / "in").rglob("*") if found.is_file()) == ["1.png", path.name]


def test_links_and_devices_of_a_tar(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        tar_member("real/1.png", b"one"),
        tar_member("out", kind=tarfile.SYMTYPE, link=str(tmp_path)),
        tar_member("out/escaped", b"bad"),
        tar_member("real/same.png", kind=tarfile.LNKTYPE, link="real/1.png"),
        tar_member("real/secret.png", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        tar_member("real/above.png", kind=tarfile.LNKTYPE, link="../a.tar"),
        tar_member("pipe", kind=tarfile.FIFOTYPE),
        tar_member("disk", kind=tarfile.BLKTYPE),
    )
    rejects = archives.extract(path, tmp_path / "out")
    assert written(tmp_path / "out") == {"real/1.png": b"one", "out/escaped": b"bad"}
    assert [reject.source.removeprefix(f"{path}/") for reject in rejects] == [
        "out",
        "real/same.png",
        "real/secret.png",
        "real/above.png",
        "pipe",
        "disk",
    ]
    assert {reject.detail for reject in rejects} == {"a link or a device"}
    assert not (tmp_path / "escaped").exists()


def test_links_of_a_zip(tmp_path):
    link = zipfile.ZipInfo("real/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
        file.writestr("real/1.png", b"one")
    (reject,) = archives.extract(tmp_path / "a.zip", tmp_path / "out")
    assert "link" in reject.detail
    assert written(tmp_path / "out") == {"real/1.png": b"one"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_whose_names_collide(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in ("real/1.png", "real/1.png", "real/1.png/deeper", "real/" + "n" * 300, "real"):
            file.writestr(name, name[-6:])
    rejects = archives.extract(tmp_path / "a.zip", tmp_path / "out")
    assert written(tmp_path / "out") == {"real/1.png": b"/1.png"}
    assert len(rejects) == 4


def test_other_members_of_a_zip_survive_a_damaged_one(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("real/1.png", b"first contents")
        file.writestr("real/2.png", b"second contents")
    path.write_bytes(path.read_bytes().replace(b"first contents", b"worse contents"))
    (reject,) = archives.extract(path, tmp_path / "out")
    assert reject.source.endswith("real/1.png")
    assert written(tmp_path / "out") == {"real/2.png": b"second contents"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_backslashes_separate_folders_and_folders_are_no_files(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("real\\", b"")
            file.writestr("real\\deep\\1.png", b"one")
    else:
        tar(path, tar_member("real", kind=tarfile.DIRTYPE), tar_member("real\\deep\\1.png", b"one"))
    assert archives.extract(path, tmp_path / "out") == []
    assert written(tmp_path / "out") == {"real/deep/1.png": b"one"}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_compressed_data_affect_one_member_of_a_zip(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        for name in ("real/1.png", "real/2.png"):
            file.writestr(name, bytes(range(256)) * 20)
        start = file.getinfo("real/1.png").header_offset + 30 + len("real/1.png")
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"?" * 40
    path.write_bytes(data)
    (reject,) = archives.extract(path, tmp_path / "out")
    assert reject.source.endswith("real/1.png") and "cannot be unpacked" in reject.detail
    assert list(written(tmp_path / "out")) == ["real/2.png"]


def test_a_size_that_understates_the_content_writes_no_more_than_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000 + 2 * archives.MEMBER_BYTES)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("real/1.png", bytes(1_000_000))
        file.writestr("real/2.png", b"two")
    data = path.read_bytes()
    path.write_bytes(data.replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    (reject,) = archives.extract(path, tmp_path / "out")
    assert reject.source.endswith("real/1.png")
    assert written(tmp_path / "out") == {"real/2.png": b"two"}


def test_an_encrypted_member_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("real/1.png", b"one")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag of the local header
    data[data.index(b"PK\1\2") + 8] |= 1  # and of the directory
    path.write_bytes(data)
    (reject,) = archives.extract(path, tmp_path / "out")
    assert "encrypted" in reject.detail


def sound_tar(tmp_path) -> bytes:
    members = [tar_member(f"real/{number}.png", bytes([number]) * 3000) for number in range(8)]
    return tar(tmp_path / "sound.tar", *members).read_bytes()


DAMAGE = {
    "zeros": lambda data: bytes(500),
    "empty": lambda data: b"",
    "cut in a file": lambda data: data[:10_000],
    "header overwritten": lambda data: data[:3584] + b"?" * 512 + data[4096:],
    "gz cut": lambda data: gzip.compress(data)[:-100],
    "gz checksum": lambda data: gzip.compress(data)[:-8] + bytes(8),
    "bz2 cut": lambda data: bz2.compress(data)[:-100],
    "xz cut": lambda data: lzma.compress(data)[:-100],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tar_is_one_clear_sentence(tmp_path, damage):
    path = tmp_path / "a.tar"
    path.write_bytes(DAMAGE[damage](sound_tar(tmp_path)))
    with pytest.raises(UserError, match=r"^data/a\.tar is damaged .*again\.$"):
        archives.extract(path, tmp_path / "out", "data/a.tar")


def zip_of(tmp_path, *names, method=zipfile.ZIP_STORED) -> bytearray:
    with zipfile.ZipFile(tmp_path / "sound.zip", "w", method) as file:
        for name in names:
            file.writestr(name, name.encode() * 50)
    return bytearray((tmp_path / "sound.zip").read_bytes())


def test_a_zip_of_a_newer_version_is_one_clear_sentence(tmp_path):
    data = zip_of(tmp_path, "real/1.png")
    data[data.index(b"PK\1\2") + 6] = 99  # the version needed to extract
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip is damaged .*version 9\.9.*again\.$"):
        archives.extract(tmp_path / "a.zip", tmp_path / "out")


def test_a_name_that_is_not_utf_8_is_one_clear_sentence(tmp_path):
    data = zip_of(tmp_path, "real/\u00e9.png")
    data[data.rindex("\u00e9".encode())] = 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip is damaged .*decode.*again\.$"):
        archives.extract(tmp_path / "a.zip", tmp_path / "out")


def test_a_member_that_needs_more_memory_than_there_is(tmp_path, monkeypatch):
    """LZMA reserves what the header says."""
    (tmp_path / "a.zip").write_bytes(zip_of(tmp_path, "real/1.png", "real/2.png", method=zipfile.ZIP_LZMA))
    sound = lzma.LZMADecompressor
    asked = []

    def refuse_the_first(*arguments, **options):
        asked.append(arguments)
        if arguments == (lzma.FORMAT_RAW,) and asked.count(arguments) == 1:  # as a zip's members have it
            raise MemoryError
        return sound(*arguments, **options)

    monkeypatch.setattr(lzma, "LZMADecompressor", refuse_the_first)
    (reject,) = archives.extract(tmp_path / "a.zip", tmp_path / "out")
    assert reject.source.endswith("real/1.png") and "MemoryError" in reject.detail
    assert list(written(tmp_path / "out")) == ["real/2.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_in_too_many_folders_are_refused(tmp_path, kind):
    deep, path = "d/" * 1500 + "1.png", tmp_path / f"a.{kind}"
    names = (deep, "e/" * 99 + "2.png", "f/" * 100 + "3.png")
    if kind == "zip":
        path.write_bytes(zip_of(tmp_path, *names))
    else:
        tar(path, *map(tar_member, names))
    rejects = archives.extract(path, tmp_path / "out", "a")
    assert [reject.source for reject in rejects] == [f"a/{names[0]}", f"a/{names[2]}"]
    assert all("more than 100 parts" in reject.detail for reject in rejects)
    assert list(written(tmp_path / "out")) == [names[1]]


def test_a_zip_cut_short_is_one_clear_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("real/1.png", bytes(5000))
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data[:-30])
    with pytest.raises(UserError, match=r"a\.zip is damaged"):
        archives.extract(tmp_path / "a.zip", tmp_path / "out")


HEADERS = {
    "global": tarfile.XGLTYPE,
    "extended": tarfile.XHDTYPE,
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_header_that_would_fill_memory_is_refused(tmp_path, monkeypatch, kind, first):
    member = tarfile.TarInfo("header")
    member.size, member.type = 20_000_000, HEADERS[kind]
    beginning = b"" if first else tar(tmp_path / "a", tar_member("real/1.png")).read_bytes()[:1024]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(beginning + member.tobuf() + bytes(20_000_000)))
    monkeypatch.setattr(gzip.GzipFile, "read", at_most(gzip.GzipFile.read, 4 << 20))
    with pytest.raises(UserError, match=r"is damaged or cut short \(headers of more than 1,048,576 bytes\)"):
        archives.extract(path, tmp_path / "out")


def at_most(read, limit):
    def limited(self, size=-1):
        assert 0 <= size <= limit
        return read(self, size)

    return limited


@pytest.mark.parametrize("kind", ["global", "extended", "long name"])
def test_many_headers_do_not_stay_in_memory(tmp_path, kind):
    """Of 300 times 1 MB, which compress to little."""
    beginning = tar(tmp_path / "a", tar_member("real/1.png")).read_bytes()[:1024]
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(300):
            text = b"x" * 1_000_000
            if kind != "long name":
                record = f"key{number}=".encode() + text + b"\n"
                text = f"{len(record) + 8} ".encode() + record
            header = tarfile.TarInfo("header")
            header.size, header.type = len(text), HEADERS[kind]
            file.write(header.tobuf() + text + bytes(-len(text) % 512) + beginning)
        file.write(bytes(1024))
    tracemalloc.start()
    try:
        with suppress(UserError) if kind == "global" else nullcontext():
            archives.extract(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("by", ["number", "extended header"])
def test_a_negative_size_does_not_loop(tmp_path, by):
    good = tar(tmp_path / "a", tar_member("real/1.png")).read_bytes()[:1024]
    bad = tarfile.TarInfo("real/2.png")
    if by == "number":
        bad.size = -512
        block = bad.tobuf(tarfile.GNU_FORMAT)
    else:
        bad.pax_headers = {"size": "-512"}
        block = bad.tobuf(tarfile.PAX_FORMAT)
    path = tmp_path / "a.tar"
    path.write_bytes(good + block + bytes(4096))
    with pytest.raises(UserError, match="a negative size"):
        archives.extract(path, tmp_path / "out")


def test_empty_members_have_a_limit_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_COUNTS_ABOVE", 100_000)
    monkeypatch.setattr(archives, "MAX_RATIO", 1)
    path = tar(tmp_path / "a.tar.xz", *(tar_member(f"real/{number}.png", b"") for number in range(300)), mode="w:xz")
    with pytest.raises(UserError, match="looks like an archive bomb"):
        archives.extract(path, tmp_path / "out")


@pytest.mark.parametrize("version", ["old", "1.0"])
def test_a_sparse_file_of_a_tar_is_refused(tmp_path, version):
    """Its map of blocks may have any length."""
    member = tarfile.TarInfo("real/1.png")
    if version == "old":
        member.type = tarfile.GNUTYPE_SPARSE
    else:
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "real/1.png"}
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT if version == "old" else tarfile.PAX_FORMAT) + bytes(4096))
    with pytest.raises(UserError, match="a sparse file"):
        archives.extract(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_stopped_before_it_fills_the_disk(tmp_path, monkeypatch, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("real/1.png", bytes(20_000_000))
    else:
        tar(path, tar_member("real/1.png", bytes(20_000_000)), mode="w:gz")
    assert archives.extract(path, tmp_path / "allowed") == []
    limits = {"ratio": {"MAX_RATIO": 100, "RATIO_COUNTS_ABOVE": 1_000_000}, "bytes": {"MAX_BYTES": 5_000_000}}
    for folder, constants in limits.items():
        with monkeypatch.context() as patch, pytest.raises(UserError, match="bomb"):
            for constant, value in constants.items():
                patch.setattr(archives, constant, value)
            archives.extract(path, tmp_path / folder)
        assert sum(len(data) for data in written(tmp_path / folder).values()) <= 5_000_000
