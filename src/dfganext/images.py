"""The only image decoder and the only resampler: download, resize, prediction and the served model use them.

An image is a uint8 array of shape (height, width, 3), RGB, 0...255.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dfganext.errors import UserError, one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM")
"""The formats that are decoded, recognised by content, not by the file's name. Formats that run other programs (EPS) are left out."""

MAX_MEGAPIXELS = 64.0
MIN_SIDE = 16
MAX_JPEG_SIDE = 65_500
"""libjpeg's limit."""


class ImageError(ValueError):
    """The bytes are not a usable image. reason: one of a few fixed phrases. The message says more; neither names the file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """Properties of an image that need no decoding of pixels.

    quantisation: mean of each quantisation table of a JPEG, in table order; () for other formats.
    """

    format: str
    mode: str
    width: int
    height: int
    quantisation: tuple[float, ...]


def decode(data: bytes, max_megapixels: float = MAX_MEGAPIXELS, min_side: int = MIN_SIDE) -> np.ndarray:
    """Decode an encoded image to RGB.

    EXIF rotation is applied; grey, palette, CMYK and 16-bit images are converted; transparent pixels are blended with white;
    an animation gives its first frame.

    Args:
        data: a whole encoded file.
        max_megapixels: larger images are refused before decoding.
        min_side: images with a shorter side are refused.

    Returns:
        uint8 array, (height, width, 3).

    Raises:
        ImageError: empty, truncated, not an image, too large, too small, or of a mode without a conversion to RGB.
    """
    with _open(data, max_megapixels, min_side) as image:
        try:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # copies only rotated images
            return np.array(_to_rgb(image))
        except ImageError:
            raise
        except Exception as error:
            # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError, ... on damaged input
            detail = f"damaged or truncated {image.format} data ({one_line(error)})"
            raise ImageError("damaged or truncated", detail) from error


def read_image(path: Path) -> np.ndarray:
    """Decode an image that `download` has accepted, whatever its size. UserError if the file is missing or damaged."""
    try:
        return decode(path.read_bytes(), max_megapixels=math.inf, min_side=1)
    except (OSError, ImageError) as error:
        raise UserError(f"{path} can no longer be read ({error}); run `dvc repro download` again.") from error


def header(data: bytes, max_megapixels: float = MAX_MEGAPIXELS, min_side: int = MIN_SIDE) -> Header:
    """Read the header without decoding the pixels. Raises ImageError as `decode` does."""
    with _open(data, max_megapixels, min_side) as image:
        tables = getattr(image, "quantization", None) or {}
        means = tuple(float(np.mean(tables[key])) for key in sorted(tables))
        return Header(str(image.format), image.mode, image.width, image.height, means)


def resize(image: np.ndarray, size: int, interpolation: str = "lanczos") -> np.ndarray:
    """Crop the largest centred square of an image and resample it to `size` x `size` pixels.

    Antialiased, with the same filter for both classes and for serving: a detector would learn a difference in resampling
    between the classes. A square of the right size is returned unchanged.

    Args:
        image: uint8, (height, width, 3).
        size: pixels per side.
        interpolation: lanczos, by Pillow; or bicubic or bilinear, by PyTorch: ten times as fast, and equal to Pillow's to within
            1 of 255.

    Returns:
        uint8, (size, size, 3).
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    if interpolation == "lanczos":
        return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))
    import torch  # takes seconds, so only where it is needed

    square = np.require(square, requirements=["C_CONTIGUOUS", "WRITEABLE"])  # copies only a cropped square
    tensor = torch.from_numpy(square).permute(2, 0, 1)[None]  # (H, W, C) -> (1, C, H, W), channels_last
    resized = torch.nn.functional.interpolate(tensor, (size, size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def to_jpeg(image: np.ndarray, quality: int = 75) -> bytes:
    """uint8 (height, width, 3) as JPEG, 4:2:0; 75 is the quality that is usual on the web. ImageError if it is too long."""
    if max(image.shape[:2]) > MAX_JPEG_SIDE:
        raise ImageError("too large", f"cannot be saved as JPEG, which has at most {MAX_JPEG_SIDE:,} pixels on a side")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The image, saved as JPEG and read again."""
    return np.array(Image.open(io.BytesIO(to_jpeg(image, quality))))


def scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """The image, width and height times `factor`, by Lanczos, antialiased: (height, width, 3)."""
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def prepare(image: np.ndarray, size: int, interpolation: str = "lanczos", reencode: bool = False) -> np.ndarray:
    """Prepare a decoded image for a model, in training, evaluation and serving alike: `resize`, then reencode if asked.

    Reencoding saves and reads the image as JPEG of one quality, so that the file's compression tells less about its class.
    Arguments and result are those of `resize`.
    """
    square = resize(image, size, interpolation)
    return as_jpeg(square, 75) if reencode else square


def _open(data: bytes, max_megapixels: float, min_side: int) -> ImageFile.ImageFile:
    if not data:
        raise ImageError("empty", "the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not an image", f"not an image that can be read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit comes before max_megapixels
        raise ImageError("too large", one_line(error)) from None
    except Exception as error:
        raise ImageError("damaged or truncated", f"damaged image header ({one_line(error)})") from error
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise ImageError("too large", f"{width}x{height} pixels are more than {max_megapixels:g} megapixels")
    if min(width, height) < min_side:
        raise ImageError("too small", f"{width}x{height} pixels are fewer than {min_side}x{min_side}")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ImageError("not usable", f"pixels of mode {image.mode} have no defined white")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
