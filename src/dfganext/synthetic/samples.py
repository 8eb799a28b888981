"""The embedded sample: drawn portraits, "real" ones as if taken by a camera, "fake" ones with a generated face.

    python -m dfganext.synthetic.samples FOLDER

writes FOLDER/real/*.jpg and FOLDER/fake/*.jpg; samples/ was made in this way, and the sets in external/ with
--external. It holds no photograph of a person. The sample shows that the workflow works; a score on it says nothing
about photographs.

Both classes have the same distribution of faces, poses and colours, the same lens, sensor noise and JPEG encoder. A
fake has one additional step, as in a face swap: a generator rebuilds the picture, and its face replaces the face. The
rest of a fake stays as it was taken.

The generator rebuilds a picture from fewer pixels by stride-2 transposed convolutions with 3x3 kernels. The kernels'
footprints overlap unevenly, so some rows and columns get more gain than their neighbours: the checkerboard of Odena,
Dumoulin and Olah, "Deconvolution and Checkerboard Artifacts" (Distill, 2016). Each colour channel has its own kernel,
and here green gets less gain where red gets more. So the checkerboard is one of colour, and nearly vanishes in
luminance. A convolutional network sees it, because it sees colours and small areas. The spectrum baseline sees the
luminance of the whole image: only the softness of the generated face is left to it, and a trace of the checkerboard.
The strength varies from fake to fake, so some fakes are hard for the network as well.

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
PER_CLASS = 600
SIZE = 96
JPEG_QUALITY = 90

EXTERNAL_SETS = ("other-generator", "re-saved")
EXTERNAL_PER_CLASS = 24
RESAVED_QUALITY = 60

Layers = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A generator's layers, as `transposed_convolutions`."""

OVERSAMPLING = 2  # drawn pixels per pixel of the image, in each direction
GAMMA = 2.2
EVEN = np.outer([1, 2, 1], [1, 2, 1]) / 4  # the kernel without a checkerboard: bilinear interpolation
OVERLAP = (0.025, 0.25)  # range of the extra gain under two footprints instead of one, in the first layer
COLOURS = np.array([1, -0.6, 0])  # what red, green and blue get of it: luminance stays nearly even
DETAIL = 0.4  # fraction of the detail lost at half of the resolution that the second layer adds
UNEVENNESS = 0.008  # relative standard deviation of a kernel's weights
FACE = (0.5, 0.54, 0.56, 0.76)  # ellipse of the generated face: centre x and y, width, height; fractions of the image
SOFT = 0.15  # width of its edge, relative to its radius


def draw(label: int, index: int, seed: int = SEED, size: int = SIZE, layers: Layers | None = None) -> np.ndarray:
    """One image, before JPEG.

    Args:
        label: labels.REAL or labels.FAKE.
        index: the number of the image in its class; 0, 1, ...
        seed: each seed gives another set of portraits.
        size: pixels per side, divisible by 4.
        layers: of the fakes' generator (default: `transposed_convolutions`).

    Returns:
        uint8, (size, size, 3).
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(label, index)))
    scene = paint_portrait(rng, OVERSAMPLING * size) ** GAMMA
    clean, noise = expose(scene, rng)
    if label == labels.FAKE:
        clean = swap_face(clean ** (1 / GAMMA), rng, layers or transposed_convolutions) ** GAMMA
    return np.round(255 * np.clip(clean + noise, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def encode(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """JPEG without metadata, colour at full resolution; the settings are the same for both classes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def write(folder: Path, per_class: int = PER_CLASS, seed: int = SEED, size: int = SIZE) -> None:
    """Draw `per_class` images of each class into folder/real and folder/fake. UserError if `folder` holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new folder to draw the sample into.")
    _write_set(folder, per_class, seed, size)


def write_external(folder: Path, per_class: int = EXTERNAL_PER_CLASS, seed: int = SEED + 1, size: int = SIZE) -> None:
    """Draw two other labelled sets: folder/other-generator and folder/re-saved, each with real/ and fake/.

    The fakes of the first come from a generator with other layers (`resize_convolutions`). The images of the second are
    saved once more. UserError if a set exists already.
    """
    for name in EXTERNAL_SETS:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists already: remove it, or name another folder.")
        layers = resize_convolutions if name == "other-generator" else transposed_convolutions
        _write_set(folder / name, per_class, seed, size, layers, RESAVED_QUALITY if name == "re-saved" else None)


def _write_set(
    folder: Path, per_class: int, seed: int, size: int, layers: Layers | None = None, resaved: int | None = None
) -> None:
    """Draw folder/real and folder/fake; with `resaved`, save each image once more, as JPEG of that quality."""
    for label, name in enumerate(labels.NAMES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            data = encode(draw(label, index, seed, size, layers))
            if resaved is not None:
                data = encode(np.asarray(Image.open(io.BytesIO(data))), resaved)
            (folder / name / f"{index:04d}.jpg").write_bytes(data)


def expose(scene: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a camera: the picture through its lens, and its sensor's noise.

    The noise is Gaussian; its variance is that of shot noise (proportional to light) plus that of read noise. It has
    one value per photosite of a Bayer mosaic. Bilinear demosaicing is linear, so it can be applied to the noise alone,
    and leaves it correlated between neighbours. Each 2x2 cell of the mosaic then becomes one pixel, so the mosaic's own
    period vanishes.

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


def swap_face(picture: np.ndarray, rng: np.random.Generator, layers: Layers) -> np.ndarray:
    """Replace the face by the face of the rebuilt picture.

    Args:
        picture: display values, 0...1, (size, size, 3), size divisible by 4.

    Returns:
        display values, 0...1, (size, size, 3).
    """
    axis = (np.arange(len(picture)) + 0.5) / len(picture)
    x, y, width, height = FACE
    radius = np.hypot((axis - x) / (width / 2), (axis[:, None] - y) / (height / 2))
    face = np.clip(0.5 + (1 - radius) / SOFT, 0, 1)[..., None]
    return np.clip(picture + face * (layers(picture, rng) - picture), 0, 1)


def transposed_convolutions(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rebuild a picture from a quarter of its resolution by two transposed convolutions, 3x3 kernels, stride 2.

    As in a generator whose layers add detail, the first layer's output gets back the detail that a quarter of the
    resolution loses, and the second layer's a part of what half of it loses. The first layer's checkerboard has a
    period of four pixels in the image, the second's, which is weaker, a period of two. The first is stronger because a
    period of two changes sign when an image is mirrored, so a network trained on mirrored images too would learn it
    too slowly.
    """
    half = picture[::2, ::2]
    quarter = half[::2, ::2]
    fine = DETAIL * (picture - _transposed_convolution(half, EVEN[..., None]))
    coarse = half - _transposed_convolution(quarter, EVEN[..., None])
    half = _transposed_convolution(quarter, _kernels(rng, rng.uniform(*OVERLAP) * COLOURS)) + coarse
    return _transposed_convolution(half, _kernels(rng, 0 * COLOURS)) + fine


def resize_convolutions(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As `transposed_convolutions`, but each layer repeats every pixel and smooths with random weights.

    This "resize convolution" (Odena et al. 2016) leaves no checkerboard of uneven overlap, only the
    loss of detail in the second layer.
    """
    half = picture[::2, ::2]
    quarter = half[::2, ::2]
    detail = half - _repeated(quarter, EVEN / 4)
    half = _repeated(quarter, _smoothing(rng)) + detail
    return _repeated(half, _smoothing(rng))


def _smoothing(rng: np.random.Generator) -> np.ndarray:
    kernel = EVEN * (1 + UNEVENNESS * rng.standard_normal((3, 3)))
    return kernel / kernel.sum()


def _repeated(small: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(n, n, 3) -> (2 n, 2 n, 3): every pixel four times, then convolved."""
    return ndimage.convolve(small.repeat(2, axis=0).repeat(2, axis=1), kernel[..., None], mode="mirror")


def _kernels(rng: np.random.Generator, overlap: np.ndarray) -> np.ndarray:
    """(3, 3, 3), a kernel per channel. Each sums to 4, which keeps the brightness.

    Args:
        overlap: what pixels under two footprints get in addition, per channel, (3,).
    """
    gain = np.stack([1 + overlap, np.ones(3), 1 + overlap])
    kernels = EVEN[..., None] * gain[:, None] * gain * (1 + UNEVENNESS * rng.standard_normal((3, 3, 3)))
    return kernels * 4 / kernels.sum(axis=(0, 1))


def _transposed_convolution(small: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Stride 2, (n, n, 3) -> (2 n, 2 n, 3): inserts zeros between the samples, then convolves.

    Args:
        kernels: one per channel, (3, 3, 3), or one for all, (3, 3, 1).
    """
    spread = np.zeros((2 * small.shape[0], 2 * small.shape[1], 3))
    spread[::2, ::2] = small
    kernels = np.broadcast_to(kernels, (3, 3, 3))
    return np.stack([ndimage.convolve(spread[..., c], kernels[..., c], mode="mirror") for c in range(3)], axis=-1)


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
