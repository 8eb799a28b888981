"""The embedded sample: drawn portraits, "real" ones as a camera would take them, "fake" ones as a generator would.

    python -m dfganext.synthetic.samples FOLDER

writes FOLDER/real/*.jpg and FOLDER/fake/*.jpg; samples/ was made so. No photograph of a person is among them, so the
workflow can be run from a fresh clone, without a network and without anybody's consent. The sample shows that the
workflow works; a score on it says nothing about photographs.

Both classes come from one painter with one distribution of faces, poses and colours, pass one lens and one sensor's
noise, and are written by one JPEG encoder. A fake goes through one step more: its clean picture is built up again from
fewer pixels by stride-2 transposed convolutions with 3x3 kernels. The kernels' footprints overlap unevenly, so that some
rows and columns get slightly more gain than their neighbours: the checkerboard of Odena, Dumoulin and Olah,
"Deconvolution and Checkerboard Artifacts" (Distill, 2016), which in frequency is a shifted replica of the spectrum
(Zhang, Karaman and Chang, "Detecting and Simulating Artifacts in GAN Fake Images", 2019). Every fake has kernels of its
own, as if every one came from another generator. It is also a little softer than a real one, as upsampled pictures are.

Image i of a class depends on (seed, class, i) alone, never on how many are drawn.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from dfganext import labels
from dfganext.errors import UserError
from dfganext.synthetic.portraits import paint_portrait

SEED = 20
PER_CLASS = 480
SIZE = 96
JPEG_QUALITY = 90

OVERSAMPLING = 2  # drawn pixels a side for each pixel of the image
GAMMA = 2.2
EVEN = np.outer([1, 2, 1], [1, 2, 1]) / 4  # the kernel whose overlaps add up evenly: bilinear interpolation
OVERLAP = (0.04, 0.07)  # range of the extra gain under two footprints instead of one, in the first layer
UNEVENNESS = 0.008  # standard deviation of a tap, relative


def draw(label: int, index: int, seed: int = SEED, size: int = SIZE) -> np.ndarray:
    """One image, before JPEG.

    Args:
        label: labels.REAL or labels.FAKE.
        index: which of the class; 0, 1, ...
        seed: another seed is another set of portraits.
        size: pixels a side, divisible by 4.

    Returns:
        uint8, (size, size, 3).
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(label, index)))
    scene = paint_portrait(rng, OVERSAMPLING * size) ** GAMMA
    clean, noise = expose(scene, rng)
    if label == labels.FAKE:
        clean = generate(clean ** (1 / GAMMA), rng) ** GAMMA
    return np.round(255 * np.clip(clean + noise, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def encode(image: np.ndarray) -> bytes:
    """JPEG without metadata, colour at full resolution: the same settings for both classes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


def write(folder: Path, per_class: int = PER_CLASS, seed: int = SEED, size: int = SIZE) -> None:
    """Draw `per_class` images of each class into folder/real and folder/fake. UserError if `folder` holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new folder to draw the sample into.")
    for label, name in enumerate(labels.NAMES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            (folder / name / f"{index:04d}.jpg").write_bytes(encode(draw(label, index, seed, size)))


def expose(scene: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What a camera makes of a scene: the picture through its lens, and its sensor's noise.

    Noise is Gaussian with a variance of shot (proportional to light) plus read noise, one value a photosite of a Bayer
    mosaic. Bilinear demosaicing is linear, so the noise can pass it alone; it leaves the noise correlated between
    neighbours. Each 2x2 cell of the mosaic then becomes one pixel, which leaves no trace of the mosaic's own period.

    Args:
        scene: linear light, 0...1, (2 size, 2 size, 3).

    Returns:
        picture and noise, linear light, (size, size, 3) each.
    """
    lens = rng.uniform(0.8, 1.4)
    blurred = np.stack([ndimage.gaussian_filter(scene[..., c], lens, mode="nearest") for c in range(3)], axis=-1)
    gain = rng.uniform(0.5, 1.5)
    sites = rng.standard_normal(blurred.shape[:2])
    noise = np.empty_like(blurred)
    rows, columns = np.indices(sites.shape)
    side, cross = np.outer([1, 2, 1], [1, 2, 1]) / 4, np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    for c, (mask, kernel) in enumerate(
        [
            ((rows % 2 == 0) & (columns % 2 == 0), side),
            ((rows + columns) % 2 == 1, cross),
            ((rows % 2 == 1) & (columns % 2 == 1), side),
        ]
    ):
        deviation = gain * np.sqrt(0.0014 * blurred[..., c] + 0.000002)
        noise[..., c] = ndimage.convolve(sites * deviation * mask, kernel, mode="mirror")
    return _bin(blurred), _bin(noise)


def generate(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Build a picture up from a quarter of its resolution by two transposed convolutions, 3x3 kernels, stride 2.

    As in a generator whose layers each add detail, the first layer's output is completed with what a quarter of the
    resolution cannot hold; the second layer adds none. The first layer's checkerboard reaches the image with a period of
    four pixels, the second's, fainter, with a period of two. The first is the stronger because a period of two changes
    sign when an image is mirrored, which leaves a network that sees mirrored images too little to start from.

    Args:
        picture: display values, 0...1, (size, size, 3), size divisible by 4.

    Returns:
        display values, 0...1, (size, size, 3).
    """
    half = picture[::2, ::2]
    quarter = half[::2, ::2]
    detail = half - _transposed_convolution(quarter, EVEN)
    half = _transposed_convolution(quarter, _kernel(rng, rng.uniform(*OVERLAP))) + detail
    return np.clip(_transposed_convolution(half, _kernel(rng, 0.0)), 0, 1)


def _kernel(rng: np.random.Generator, overlap: float) -> np.ndarray:
    """A (3, 3) kernel that sums to 4, so that brightness stays; pixels under two of its footprints get `overlap` more."""
    edge = 1 + overlap
    kernel = EVEN * np.outer([edge, 1, edge], [edge, 1, edge]) * (1 + UNEVENNESS * rng.standard_normal((3, 3)))
    return kernel * 4 / kernel.sum()


def _transposed_convolution(small: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Stride 2, (n, n, 3) -> (2 n, 2 n, 3): zeros between the samples, then a convolution."""
    spread = np.zeros((2 * small.shape[0], 2 * small.shape[1], 3))
    spread[::2, ::2] = small
    return ndimage.convolve(spread, kernel[..., None], mode="mirror")


def _bin(image: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    cells = image.reshape(height // OVERSAMPLING, OVERSAMPLING, width // OVERSAMPLING, OVERSAMPLING, channels)
    return cells.mean(axis=(1, 3))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dfganext.synthetic.samples", description="Draw the embedded sample."
    )
    parser.add_argument("folder", type=Path, help="a folder that is new or empty")
    try:
        write(parser.parse_args(arguments).folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
