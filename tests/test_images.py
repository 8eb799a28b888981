"""The one decoder and the one resampler, against numpy and Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dfganext import images
from dfganext.images import ImageError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def save(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, data: bytes, transparent: bytes = b"") -> bytes:
    """A PNG file made by hand, for what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, content) for name, content in chunks if content or name == b"IEND"
    )


def same(data: bytes, expected: np.ndarray) -> None:
    decoded = images.decode(data)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_lossless_formats_decode_to_the_same_pixels(kind):
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    data = save(Image.fromarray(COLOUR), kind, **options)
    same(data, COLOUR)
    assert images.header(data) == images.Header(kind, "RGB", 30, 20, ())


def test_jpeg_is_what_pillow_decodes():
    data = save(Image.fromarray(COLOUR), "JPEG", quality=90)
    same(data, np.asarray(Image.open(io.BytesIO(data))))


def test_grey_becomes_three_equal_channels():
    same(save(Image.fromarray(GREY)), np.repeat(GREY[..., None], 3, axis=2))


def test_one_bit_becomes_black_and_white():
    same(save(Image.fromarray(GREY > 127)), np.repeat(np.where(GREY > 127, 255, 0)[..., None], 3, axis=2))


def test_16_bit_grey_keeps_the_high_byte():
    deep = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    for data in (save(Image.fromarray(deep)), save(Image.fromarray(deep), "TIFF")):
        same(data, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_16_bit_colour_keeps_the_high_byte():
    deep = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    same(png(30, 20, 16, 2, rows), (deep >> 8).astype(np.uint8))


def test_32_bit_and_floating_point_pixels_are_refused():
    for pixels in (GREY.astype(np.int32) * 100_000, GREY.astype(np.float32)):
        with pytest.raises(ImageError, match="no defined white"):
            images.decode(save(Image.fromarray(pixels), "TIFF"))


def test_a_palette_is_looked_up():
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY, "L").convert("P")
    image.putpalette(palette.tobytes())
    indices = np.asarray(image)
    same(save(image), palette[indices])
    same(save(image, "GIF"), palette[indices])


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def test_a_transparent_palette_entry_becomes_white():
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY, "L").convert("P")
    image.putpalette(palette.tobytes())
    indices = np.asarray(image)
    hidden = int(indices[0, 0])
    for data in (save(image, transparency=hidden), save(image, "GIF", transparency=hidden)):
        same(data, np.where((indices == hidden)[..., None], 255, palette[indices]))


def test_a_transparent_colour_becomes_white():
    hidden = tuple(int(value) for value in COLOUR[0, 0])
    expected = COLOUR.copy()
    expected[(COLOUR[0, 0] == COLOUR).all(axis=2)] = 255
    same(save(Image.fromarray(COLOUR), transparency=hidden), expected)


@pytest.mark.parametrize("kind", ["RGBA", "LA"])
def test_transparent_pixels_are_blended_with_white(kind):
    alpha = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
    colour = COLOUR if kind == "RGBA" else np.repeat(GREY[..., None], 3, axis=2)
    layer = np.dstack([COLOUR, alpha] if kind == "RGBA" else [GREY, alpha])
    decoded = images.decode(save(Image.fromarray(layer)))
    assert np.abs(decoded - over_white(colour, alpha)).max() <= 1


def test_cmyk_becomes_rgb():
    inks = RNG.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    data = save(Image.fromarray(inks, "CMYK"), "TIFF")
    light = 255 - inks.astype(int)
    expected = light[..., :3] * light[..., 3:] / 255
    assert np.abs(images.decode(data) - expected).max() <= 1
    data = save(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    assert images.header(data).mode == "CMYK"
    assert images.decode(data).shape == (20, 30, 3)


# What to do to the stored pixels to see the picture upright, by the meaning of each EXIF orientation
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(COLOUR), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    stored = np.asarray(Image.open(io.BytesIO(data))) if kind == "JPEG" else COLOUR
    same(data, UPRIGHT[orientation](stored))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.fromarray(np.full((20, 30, 3), value, dtype=np.uint8)) for value in (40, 160, 250)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = save(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    same(data, np.full((20, 30, 3), 40))


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_damage_after_the_first_frame_is_ignored(kind):
    frames = [Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
    data = save(frames[0], kind, save_all=True, append_images=frames[1:])
    first = images.decode(data)
    readable = 0
    for end in range(100, len(data)):
        try:
            decoded = images.decode(data[:end])
        except ImageError:
            continue
        readable += 1
        assert (images.header(data[:end]).width, images.header(data[:end]).height) == (30, 20)
        np.testing.assert_array_equal(decoded, first)
    assert readable > 100


def test_a_phone_picture_with_a_second_picture_in_it():
    data = save(Image.fromarray(COLOUR), "MPO", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    same(data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_an_empty_file():
    with pytest.raises(ImageError, match="empty"):
        images.decode(b"")


@pytest.mark.parametrize(
    "data", [b"hello", bytes(1000), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", b"<svg/>"]
)
def test_bytes_that_are_not_an_image(data):
    with pytest.raises(ImageError, match="not an image"):
        images.decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_a_truncated_image_is_refused_wherever_it_is_cut(kind):
    data = save(Image.fromarray(COLOUR), kind)
    for kept in range(1, 90, 4):
        with pytest.raises(ImageError):
            images.decode(data[: len(data) * kept // 100])


@pytest.mark.filterwarnings("ignore:Tag data larger")
def test_damage_raises_only_image_errors():
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"):
        data = np.frombuffer(save(Image.fromarray(COLOUR), kind), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
            try:
                images.decode(damaged.tobytes())
                images.header(damaged.tobytes())
            except ImageError as error:
                assert "\n" not in str(error)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded():
    for side, message in ((50_000, "exceeds limit of 178956970 pixels"), (11_000, "more than 64 megapixels")):
        data = png(side, side, 8, 2, bytes(100))
        assert len(data) < 200
        for function in (images.decode, images.header):
            with pytest.raises(ImageError, match=message) as caught:
                function(data)
            assert caught.value.reason == "too large"


def test_the_size_limits_are_those_of_the_arguments():
    data = save(Image.fromarray(COLOUR))
    with pytest.raises(ImageError, match="30x20 pixels are fewer than 21x21"):
        images.decode(data, min_side=21)
    with pytest.raises(ImageError, match=r"more than 0\.0005 megapixels"):
        images.decode(data, max_megapixels=0.0005)
    same(data, images.decode(data, max_megapixels=0.0006, min_side=20))
    with pytest.raises(ImageError, match="1x1 pixels"):
        images.decode(save(Image.fromarray(COLOUR[:1, :1])))


def test_a_huge_text_in_a_png_is_refused():
    note = PngImagePlugin.PngInfo()
    note.add_text("note", "x" * 50_000_000, zip=True)
    with pytest.raises(ImageError):
        images.decode(save(Image.fromarray(COLOUR), pnginfo=note))


def quantisation(data: bytes) -> tuple[float, ...]:
    return images.header(data).quantisation


def test_quantisation_tables():
    image = Image.fromarray(COLOUR)
    assert quantisation(save(image, "JPEG", qtables=[[2] * 64, [5] * 32 + [7] * 32])) == (2.0, 6.0)
    assert quantisation(save(image)) == ()
    coarse, fine = (sum(quantisation(save(image, "JPEG", quality=quality))) for quality in (50, 95))
    assert coarse > fine


@pytest.mark.parametrize("shape", [(64, 64), (100, 64), (64, 101), (40, 33), (300, 200)])
@pytest.mark.parametrize("size", [16, 33, 64, 96])
def test_resize_is_pillows_lanczos_of_the_centred_square(shape, size):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    side = min(shape)
    left, top = (shape[1] - side) // 2, (shape[0] - side) // 2
    cut = Image.fromarray(image).crop((left, top, left + side, top + side))
    expected = np.asarray(cut.resize((size, size), Image.Resampling.LANCZOS))
    resized = images.resize(image, size)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected)


def test_a_square_of_the_right_size_is_unchanged():
    image = RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.resize(image, 48), image)
    wide = RNG.integers(0, 256, (48, 61, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.resize(wide, 48), wide[:, 6:54])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("shape", "size"), [((1024, 1024, 3), 256), ((97, 260, 3), 64), ((40, 33, 3), 80)])
def test_other_interpolations_equal_pillows_to_one_level(interpolation, shape, size):
    image = np.random.default_rng(9).integers(0, 256, shape, dtype=np.uint8)
    side = min(shape[:2])
    left, top = (shape[1] - side) // 2, (shape[0] - side) // 2
    cut = Image.fromarray(image).crop((left, top, left + side, top + side))
    expected = np.asarray(cut.resize((size, size), Image.Resampling[interpolation.upper()])).astype(int)
    assert np.abs(images.resize(image, size, interpolation).astype(int) - expected).max() <= 1


def test_resize_keeps_a_flat_colour_and_the_mean_and_does_not_alias():
    flat = np.full((200, 200, 3), (10, 130, 250), dtype=np.uint8)
    np.testing.assert_array_equal(images.resize(flat, 31), np.broadcast_to(flat[0, 0], (31, 31, 3)))
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(images.resize(stripes, 50).astype(int) - 127).max() <= 12  # skipping pixels would give 128
    image = RNG.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert abs(images.resize(image, 32).mean() - image.mean()) < 1.5
    np.testing.assert_array_equal(images.resize(image[:, ::-1], 32), images.resize(image, 32)[:, ::-1])


def test_reencoded_images_have_one_last_compression():
    rng = np.random.default_rng(8)
    picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    files = []
    for options in ({"format": "PNG"}, {"format": "JPEG", "quality": 40}, {"format": "JPEG", "quality": 95}):
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        files.append(images.decode(buffer.getvalue()))
    tables = {quantisation(images.to_jpeg(image)) for image in files}
    assert len(tables) == 1
    for image in files:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=75, subsampling=2)
        expected = np.asarray(Image.open(buffer))
        np.testing.assert_array_equal(images.prepare(image, 64, reencode=True), expected)
        np.testing.assert_array_equal(images.prepare(image, 64, reencode=False), image)
        assert images.prepare(image, 32, reencode=True).shape == (32, 32, 3)
