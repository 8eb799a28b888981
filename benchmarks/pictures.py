"""Test images: noise with the spectrum of a photograph, which compresses like one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(size: int, seed: int) -> np.ndarray:
    """uint8 (size, size, 3): noise of every octave, its amplitude proportional to the wavelength."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size, 3), np.float32)
    octave = 4
    while octave <= size:
        noise = rng.normal(0, 1, (octave, octave, 3)).astype(np.float32)
        layers = [
            np.asarray(Image.fromarray(noise[..., channel]).resize((size, size), Image.Resampling.BICUBIC))
            for channel in range(3)
        ]
        total += np.stack(layers, axis=2) * (4 / octave)
        octave *= 2
    return np.clip(128 + 45 * total, 0, 255).astype(np.uint8)


def encoded(size: int, seed: int, format: str) -> bytes:
    """A picture as a JPEG of quality 90, or as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture(size, seed)).save(buffer, format, **({"quality": 90} if format == "JPEG" else {}))
    return buffer.getvalue()


def folder_of(folder: Path, count: int, size: int, format: str, distinct: int = 32) -> list[Path]:
    """Write `count` files below `folder`, alternately to real/ and fake/, from `distinct` different pictures; returns their paths."""
    contents = [encoded(size, seed, format) for seed in range(min(distinct, count))]
    paths = []
    for number in range(count):
        path = folder / ("real", "fake")[number % 2] / f"{number:06}.{format.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)])
        paths.append(path)
    return paths
