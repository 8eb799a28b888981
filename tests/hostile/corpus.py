"""Files that strangers might send: seeded mutations of images in every format that is decoded, and of archives."""

import gzip
import io
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dfganext.images import FORMATS

WIDTH, HEIGHT = 97, 61
"""Numbers that occur nowhere else in a header, so that they can be found and replaced."""

OPTIONS = {
    "JPEG": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True, "quality": 30})],
    "PNG": [("RGB", {}), ("RGBA", {}), ("P", {}), ("I;16", {}), ("LA", {}), ("1", {})],
    "WEBP": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"frames": 3})],
    "BMP": [("RGB", {}), ("L", {}), ("1", {}), ("P", {})],
    "TIFF": [
        ("RGB", {"compression": "tiff_lzw"}),
        ("L", {}),
        ("RGB", {"compression": "jpeg"}),
        ("I;16", {}),
        ("RGB", {"frames": 2}),
    ],
    "GIF": [("P", {}), ("L", {}), ("P", {"frames": 3})],
    "JPEG2000": [("RGB", {}), ("L", {}), ("RGB", {"no_jp2": True})],
    "PPM": [("RGB", {}), ("L", {}), ("1", {})],
}
"""Modes and options of the images that mutations begin with; frames: of an animation, or pages."""


def originals(format: str) -> list[bytes]:
    """A small image in this format, in each of its variants."""
    return [_encoded(format, mode, dict(options)) for mode, options in OPTIONS[format]]


def mutations(format: str, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and content of damaged or lying files of one format, which do not change between runs."""
    sources = originals(format)
    for number in range(count):
        rng = random.Random(f"{seed} {format} {number}")
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        source = sources[(number // len(MUTATIONS)) % len(sources)]
        yield f"{format.lower()}-{number:04}-{kind}.img", MUTATIONS[kind](source, rng)


def every_mutation(per_format: int) -> Iterator[tuple[str, bytes]]:
    """`mutations` of all formats."""
    for format in FORMATS:
        yield from mutations(format, per_format)


def archives(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and content of archives: with members that lead elsewhere, bombs, many or deep members, and damaged ones."""
    makers = [_zip, _tar, _tar_gz]
    for number in range(count):
        rng = random.Random(f"{seed} archive {number}")
        maker = makers[number % len(makers)]
        members = _members(rng)
        data = maker(members)
        if number % 2:
            kind = rng.choice(["cut", "flip", "overwrite", "insert", "remove", "repeat"])
            data = MUTATIONS[kind](data, rng)
        yield f"archive-{number:04}{SUFFIX_OF[maker]}", data


def _encoded(format: str, mode: str, options: dict) -> bytes:
    ramp = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))
    pixels = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2).astype(np.uint8)
    image = Image.fromarray(ramp.astype(np.uint16) * 400) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    frames = options.pop("frames", 1)
    if frames > 1:
        options |= {"save_all": True, "append_images": [image.rotate(30 * frame) for frame in range(1, frames)]}
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    """A few bytes, most of them in the header, with values at the ends of a number's range."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(min(len(changed), 120) if rng.random() < 0.8 else len(changed))
        value = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff", b"\0"])
        changed[place : place + len(value)] = value
    return bytes(changed)


def _insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 400)) + data[place:]


def _remove(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randint(1, 60) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.sample(range(len(data)), 2))
    return data[:last] + data[first:last] * rng.randint(1, 50) + data[last:]


def _huge(data: bytes, rng: random.Random) -> bytes:
    """Width and height in the header replaced by larger ones, as 16 or 32 bits of either order, or as text."""
    large = rng.choice([7_000, 12_000, 40_000, 65_535])
    changed = data
    for side in (WIDTH, HEIGHT):
        for form in (">I", "<I", ">H", "<H"):
            old = struct.pack(form, side)
            new = struct.pack(form, large)
            at = changed.find(old)
            if 0 <= at < 200:
                changed = changed[:at] + new + changed[at + len(old) :]
        at = changed.find(str(side).encode())
        if 0 <= at < 20:  # PPM
            changed = changed[:at] + str(large).encode() + changed[at + len(str(side)) :]
    if changed[1:4] == b"PNG":  # the check sum of the header is right again
        changed = changed[:29] + struct.pack(">I", zlib.crc32(changed[12:29])) + changed[33:]
    return changed


def _polyglot(data: bytes, rng: random.Random) -> bytes:
    """An image that is a page, an archive or another image as well."""
    other = rng.choice(
        [b"<html><script>alert(1)</script></html>", _zip([("a.png", data)]), data, b"%PDF-1.7\n", b"#!/bin/sh\n"]
    )
    return rng.choice([data + other, other + data, data[: len(data) // 2] + other])


def _noise(data: bytes, rng: random.Random) -> bytes:
    """The beginning of the image, then random bytes."""
    return data[: rng.randint(4, 40)] + rng.randbytes(rng.randint(0, 3000))


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "flip": _flip,
    "overwrite": _overwrite,
    "insert": _insert,
    "remove": _remove,
    "repeat": _repeat,
    "huge": _huge,
    "polyglot": _polyglot,
    "noise": _noise,
}

Member = tuple[str, bytes]

EVIL_NAMES = (
    "/tmp/absolute.png",
    "../outside.png",
    "real/../../outside.png",
    "..\\outside.png",
    "C:\\outside.png",
    "real/" + "a" * 300 + ".png",
    "real/" + "d/" * 150 + "deep.png",
    "real/new\nline\r\x1b[2J.png",
    "real/\u202egnp.exe",
    "real/con.png\0.exe",
    "",
    ".",
    "real//double.png",
    "real/\udce9.png",
)


def _members(rng: random.Random) -> list[Member]:
    good = originals("PNG")[0]
    members = [(f"{name}/good-{index}.png", good) for index, name in enumerate(("real", "fake"))]
    members += [(name, good) for name in rng.sample(EVIL_NAMES, 3)]
    match rng.randrange(6):
        case 0:
            members += [(f"fake/many-{index}.png", b"x") for index in range(500)]
        case 1:
            members.append(("fake/bomb.png", bytes(8 * 2**20)))
        case 2:
            members.append(("fake/nested.zip", _zip([("nested.zip", _zip([("deeper.zip", _zip([("a.png", good)]))]))])))
        case 3:
            members += [("real/good-0.png", b"twice"), ("real/good-0.png/below-a-file.png", good)]
    rng.shuffle(members)
    return members


def _zip(members: list[Member]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            info.filename = info.orig_filename = name.encode("utf-8", "replace").decode()  # ZipInfo cuts at NUL
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    return buffer.getvalue()


def _tar(members: list[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"real/special-{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        link = tarfile.TarInfo("fake/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
        file.addfile(link)
        through = tarfile.TarInfo("fake/link/through-a-link.png")
        file.addfile(through)
    return buffer.getvalue()


def _tar_gz(members: list[Member]) -> bytes:
    return gzip.compress(_tar(members), 1, mtime=0)


SUFFIX_OF = {_zip: ".zip", _tar: ".tar", _tar_gz: ".tar.gz"}


def write(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files:
        (folder / name).write_bytes(data)
