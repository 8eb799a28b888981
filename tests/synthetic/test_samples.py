"""The embedded sample is what its code draws, fits its size, and gives a class away by nothing but pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from dfganext import images, labels
from dfganext.evaluation.spectrum import LUMA
from dfganext.synthetic import samples

COMMITTED = Path(__file__).parents[2] / "samples"
BLOCK = 4096
DRAWN_AGAIN = 40
"""Images of each class; an image does not depend on how many are drawn."""


def committed(name: str) -> list[Path]:
    return sorted((COMMITTED / name).iterdir())


@pytest.fixture(scope="module")
def drawn_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    samples.write(folder, per_class=DRAWN_AGAIN)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", labels.NAMES)
def test_a_new_drawing_equals_the_committed_sample(drawn_again: Path, name: str) -> None:
    """The pixels are equal where processor and library versions are.

    Elsewhere sines and powers may differ in their last bit, and one value in billions then rounds the other way: a level
    in one pixel at most, after JPEG a few levels in one block of 8 x 8. That is below 0.05 on average over an image,
    where another drawing differs by tens.
    """
    again, first = sorted((drawn_again / name).iterdir()), committed(name)[:DRAWN_AGAIN]
    assert [path.name for path in again] == [path.name for path in first]
    for one, other in zip(again, first, strict=True):
        pixels, expected = (images.decode(path.read_bytes()).astype(float) for path in (one, other))
        assert np.abs(pixels - expected).mean() < 0.05, one.name


def test_the_sample_is_balanced_and_fits_five_megabytes_on_disk() -> None:
    sizes = {name: [path.stat().st_size for path in committed(name)] for name in labels.NAMES}
    assert len(sizes["real"]) == len(sizes["fake"]) == samples.PER_CLASS
    assert sum(-(-size // BLOCK) * BLOCK for every in sizes.values() for size in every) <= 5_000_000


def test_format_size_and_quantisation_are_the_same_in_both_classes() -> None:
    seen = {name: set() for name in labels.NAMES}
    for name in labels.NAMES:
        for path in committed(name):
            data = path.read_bytes()
            with Image.open(path) as image:
                extra = sorted(set(image.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"})
                tables = tuple(tuple(table) for table in image.quantization.values())
                seen[name].add((images.header(data), tables, tuple(extra), path.suffix, len(path.name)))
    assert seen["real"] == seen["fake"]
    assert len(seen["real"]) == 1
    ((header, _, extra, _, _),) = seen["real"]
    assert (header.format, header.width, header.height, extra) == ("JPEG", samples.SIZE, samples.SIZE, ())


def test_file_sizes_and_colours_hardly_separate_the_classes() -> None:
    paths = [path for name in labels.NAMES for path in committed(name)]
    truth = [labels.index_of(path.parent.name) for path in paths]
    pixels = np.stack([images.decode(path.read_bytes()) for path in paths])
    assert abs(roc_auc_score(truth, [path.stat().st_size for path in paths]) - 0.5) < 0.1
    for channel in range(3):
        assert abs(roc_auc_score(truth, pixels[..., channel].mean(axis=(1, 2))) - 0.5) < 0.06
        assert abs(roc_auc_score(truth, pixels[..., channel].var(axis=(1, 2))) - 0.5) < 0.06


def test_an_image_depends_on_seed_class_and_index() -> None:
    first = samples.draw(labels.REAL, 3, seed=1)
    assert (first.dtype, first.shape) == (np.uint8, (samples.SIZE, samples.SIZE, 3))
    np.testing.assert_array_equal(first, samples.draw(labels.REAL, 3, seed=1))
    for other in (
        samples.draw(labels.REAL, 3, seed=2),
        samples.draw(labels.REAL, 4, seed=1),
        samples.draw(1, 3, seed=1),
    ):
        assert np.abs(first.astype(float) - other).mean() > 5


def test_an_image_does_not_depend_on_the_number_drawn(tmp_path: Path) -> None:
    samples.write(tmp_path / "two", per_class=2, seed=5, size=32)
    samples.write(tmp_path / "three", per_class=3, seed=5, size=32)
    for name in labels.NAMES:
        for path in (tmp_path / "two" / name).iterdir():
            assert path.read_bytes() == (tmp_path / "three" / name / path.name).read_bytes()


def test_the_upsampling_is_a_transposed_convolution() -> None:
    """Against the definition: every sample lays down its weight times the kernel, footprints two pixels apart."""
    rng = np.random.default_rng(0)
    small, kernels = rng.uniform(size=(5, 5, 3)), rng.uniform(size=(3, 3, 3))
    expected = np.zeros((12, 12, 3))
    for row in range(5):
        for column in range(5):
            footprint = small[row, column] * kernels
            expected[2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += footprint
    found = samples._transposed_convolution(small, kernels)
    np.testing.assert_allclose(found[1:9, 1:9], expected[2:10, 2:10])


def test_the_generator_leaves_a_period_of_four_in_colour_but_hardly_in_luminance() -> None:
    """On a skin-coloured wall, away from the edges: columns repeat with a period of four and nothing longer."""
    wall = np.broadcast_to([0.8, 0.6, 0.5], (40, 40, 3))
    made = samples.transposed_convolutions(wall, np.random.default_rng(0))[4:-4, 4:-4]
    columns = np.abs(np.fft.rfft(made.mean(axis=0), axis=0))  # 32 columns: bin 8 is a period of four, bin 16 of two
    red = columns[:, 0]
    assert red[8] > 1000 * np.delete(red, [0, 8, 16]).max()
    assert red[8] > red[16]
    assert np.abs(np.fft.rfft(made.mean(axis=0) @ LUMA))[8] < 0.1 * red[8]
    np.testing.assert_allclose(made.mean(axis=(0, 1)), wall[0, 0], atol=0.005)


def test_only_the_face_is_generated() -> None:
    picture = np.random.default_rng(0).uniform(0.2, 0.8, (96, 96, 3))
    change = np.abs(samples.swap_face(picture, np.random.default_rng(1), lambda rebuilt, rng: 1 - rebuilt) - picture)
    outside = np.ones((96, 96), bool)
    outside[10:94, 16:80] = False
    assert change[outside].max() == 0
    np.testing.assert_allclose(change[45:55, 45:55], np.abs(1 - 2 * picture[45:55, 45:55]))


def test_the_external_sets_are_drawn_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples.write_external(tmp_path, per_class=2, size=32)
    for name in samples.EXTERNAL_SETS:
        for kind in labels.NAMES:
            assert [path.name for path in sorted((tmp_path / name / kind).iterdir())] == ["0000.jpg", "0001.jpg"]
    assert samples.main([str(tmp_path), "--external"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_noise_has_no_period_and_grows_with_light() -> None:
    rng = np.random.default_rng(0)
    scene = np.repeat(np.linspace(0.1, 0.9, 256)[:, None, None], 256, axis=1) * np.ones(3)
    picture, noise = samples.expose(scene, rng)
    assert picture.shape == noise.shape == (128, 128, 3)
    np.testing.assert_allclose(picture[8:-8], ndimage.zoom(scene, (0.5, 0.5, 1), order=1)[8:-8], atol=0.01)
    assert abs(noise.mean()) < 0.002
    assert noise[-32:].std() > 1.3 * noise[:32].std()
    lattice = np.array([noise[i::2, j::2].std() for i in range(2) for j in range(2)])
    assert lattice.max() / lattice.min() < 1.1


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    assert samples.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
