"""The embedded sample: drawn portraits, the "real" ones as if taken by a camera, the "fake" ones as if made by a generator.

    python -m dfganext.synthetic.samples FOLDER

writes FOLDER/real/*.jpg and FOLDER/fake/*.jpg; samples/ was made in this way, and the sets in external/ with --external. It holds no photograph of a person. The sample
shows that the workflow works; a score on it says nothing about photographs.

Both classes have the same distribution of faces, poses and colours, the same lens, sensor noise and JPEG encoder. A fake
has one additional step: its clean picture is rebuilt from fewer pixels by stride-2 transposed convolutions with 3x3
kernels. The kernels' footprints overlap unevenly, so some rows and columns get slightly more gain than their
neighbours: the checkerboard of Odena, Dumoulin and Olah, "Deconvolution and Checkerboard Artifacts" (Distill, 2016),
which in frequency is a shifted replica of the spectrum (Zhang, Karaman and Chang, "Detecting and Simulating Artifacts
in GAN Fake Images", 2019). Each fake has its own kernels, as if each came from a different generator. It is also a
little softer than a real one, as upsampled pictures are.

Image i of a class depends only on (seed, class, i), not on the number of images drawn.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
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

EXTERNAL_SETS = ("other-generator", "re-saved")
EXTERNAL_PER_CLASS = 24
RESAVED_QUALITY = 60

Generator = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""As `generate`."""

OVERSAMPLING = 2  # drawn pixels per pixel of the image, in each direction
GAMMA = 2.2
EVEN = np.outer([1, 2, 1], [1, 2, 1]) / 4  # the kernel without a checkerboard: bilinear interpolation
OVERLAP = (0.04, 0.07)  # range of the extra gain under two footprints instead of one, in the first layer
UNEVENNESS = 0.008  # relative standard deviation of a kernel's weights


def draw(label: int, index: int, seed: int = SEED, size: int = SIZE, generator: Generator | None = None) -> np.ndarray:
    """One image, before JPEG.

    Args:
        label: labels.REAL or labels.FAKE.
        index: the number of the image in its class; 0, 1, ...
        seed: each seed gives another set of portraits.
        size: pixels per side, divisible by 4.
        generator: of the fakes (default: `generate`).

    Returns:
        uint8, (size, size, 3).
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(label, index)))
    scene = paint_portrait(rng, OVERSAMPLING * size) ** GAMMA
    clean, noise = expose(scene, rng)
    if label == labels.FAKE:
        clean = (generator or generate)(clean ** (1 / GAMMA), rng) ** GAMMA
    return np.round(255 * np.clip(clean + noise, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def encode(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """JPEG without metadata, colour at full resolution; the settings are the same for both classes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def write_external(folder: Path, per_class: int = EXTERNAL_PER_CLASS, seed: int = SEED + 1, size: int = SIZE) -> None:
    """Draw two other labelled sets: folder/other-generator and folder/re-saved, each with real/ and fake/.

    The fakes of the first come from another generator (`generate_otherwise`). The images of the second are saved once more.
    UserError if a set exists already.
    """
    for name in EXTERNAL_SETS:
        generator = generate_otherwise if name == "other-generator" else generate
        for label, kind in enumerate(labels.NAMES):
            try:
                (folder / name / kind).mkdir(parents=True)
            except FileExistsError:
                raise UserError(f"{folder / name} exists already: remove it, or name another folder.") from None
            for index in range(per_class):
                data = encode(draw(label, index, seed, size, generator))
                if name == "re-saved":
                    data = encode(np.asarray(Image.open(io.BytesIO(data))), RESAVED_QUALITY)
                (folder / name / kind / f"{index:04d}.jpg").write_bytes(data)


def write(folder: Path, per_class: int = PER_CLASS, seed: int = SEED, size: int = SIZE) -> None:
    """Draw `per_class` images of each class into folder/real and folder/fake. UserError if `folder` holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new folder to draw the sample into.")
    for label, name in enumerate(labels.NAMES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            (folder / name / f"{index:04d}.jpg").write_bytes(encode(draw(label, index, seed, size)))


def expose(scene: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a camera: the picture through its lens, and its sensor's noise.

    The noise is Gaussian; its variance is that of shot noise (proportional to light) plus that of read noise. It has one value
    per photosite of a Bayer mosaic. Bilinear demosaicing is linear, so it can be applied to the noise alone, and leaves it
    correlated between neighbours. Each 2x2 cell of the mosaic then becomes one pixel, so the mosaic's own period vanishes.

    Args:
        scene: linear light, 0...1, (2 size, 2 size, 3).

    Returns:
        picture and noise, linear light, (size, size, 3) each.
    """
    lens = rng.uniform(0.8, 1.4)
    blurred = ndimage.gaussian_filter(scene, (lens, lens, 0), mode="nearest")
    gain = rng.uniform(0.5, 1.5)
    sites = rng.standard_normal(blurred.shape[:2])
    noise = np.empty_like(blurred)
    rows, columns = np.indices(sites.shape)
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    red, green, blue = (rows % 2 + columns % 2 == place for place in range(3))
    for c, (mask, kernel) in enumerate([(red, EVEN), (green, cross), (blue, EVEN)]):
        std = gain * np.sqrt(0.0014 * blurred[..., c] + 0.000002)
        noise[..., c] = ndimage.convolve(sites * std * mask, kernel, mode="mirror")
    return _bin(blurred), _bin(noise)


def generate(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rebuild a picture from a quarter of its resolution by two transposed convolutions, 3x3 kernels, stride 2.

    As in a generator whose layers add detail, the first layer's output gets back the detail that a quarter of the resolution
    loses; the second layer adds none. The first layer's checkerboard has a period of four pixels in the image, the second's,
    which is weaker, a period of two. The first is stronger because a period of two changes sign when an image is
    mirrored, so a network trained on mirrored images too would learn it too slowly.

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


def generate_otherwise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As `generate`, but each layer repeats every pixel and smooths with random weights ("resize convolution", Odena et al. 2016).

    It leaves no checkerboard of uneven overlap, only the loss of detail in the second layer.
    """
    half = picture[::2, ::2]
    quarter = half[::2, ::2]
    detail = half - _repeated(quarter, EVEN / 4)
    half = _repeated(quarter, _smoothing(rng)) + detail
    return np.clip(_repeated(half, _smoothing(rng)), 0, 1)


def _smoothing(rng: np.random.Generator) -> np.ndarray:
    kernel = EVEN * (1 + UNEVENNESS * rng.standard_normal((3, 3)))
    return kernel / kernel.sum()


def _repeated(small: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(n, n, 3) -> (2 n, 2 n, 3): every pixel four times, then convolved."""
    return ndimage.convolve(small.repeat(2, axis=0).repeat(2, axis=1), kernel[..., None], mode="mirror")


def _kernel(rng: np.random.Generator, overlap: float) -> np.ndarray:
    """A (3, 3) kernel that sums to 4, which keeps the brightness; pixels under two of its footprints get `overlap` more."""
    edge = 1 + overlap
    kernel = EVEN * np.outer([edge, 1, edge], [edge, 1, edge]) * (1 + UNEVENNESS * rng.standard_normal((3, 3)))
    return kernel * 4 / kernel.sum()


def _transposed_convolution(small: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Stride 2, (n, n, 3) -> (2 n, 2 n, 3): inserts zeros between the samples, then convolves."""
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
    parser.add_argument("--external", action="store_true", help="draw the other labelled sets, of external/")
    options = parser.parse_args(arguments)
    try:
        (write_external if options.external else write)(options.folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
