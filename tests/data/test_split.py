"""The sample is balanced and seeded, and near duplicates stay in one split."""

import dataclasses
import functools
import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from scipy.sparse.csgraph import connected_components

from dfganext import files
from dfganext.data import manifest
from dfganext.data import split as splits
from dfganext.data.split import COLUMNS, draw, near_duplicate_groups, read, unpack_hashes
from dfganext.errors import UserError
from dfganext.settings import Subsample

SETTINGS = Subsample(seed=0, per_class=None, train_to_test=5, validation=0.1, near_duplicate_bits=10)
HASHES = ["phash", "phash_mirrored"]


def a_manifest(real: int = 60, fake: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [("real", number) for number in range(real)] + [("fake", number) for number in range(fake)]
    return pd.DataFrame(
        {
            "path": [f"{label}/{number:05}.png" for label, number in rows],
            "label": [label for label, _ in rows],
            "sha256": [rng.bytes(32).hex() for _ in rows],
            "phash": [rng.bytes(32).hex() for _ in rows],
            "phash_mirrored": [rng.bytes(32).hex() for _ in rows],
        }
    )


def flipped(phash: str, bits: int) -> str:
    value = bytearray.fromhex(phash)
    for bit in range(bits):
        value[bit * 5 % 32] ^= 1 << (bit * 3 % 8)
    return bytes(value).hex()


def test_sizes_are_exact_and_balanced():
    split = draw(a_manifest(), SETTINGS, seed=1)
    counts = split.groupby(["split", "label"]).size()
    for label in ("real", "fake"):
        assert counts["test", label] == 10 and counts["validation", label] == 5 and counts["train", label] == 45
    assert split.path.is_unique and list(split.columns) == list(COLUMNS)


def test_null_takes_as_many_images_as_both_classes_have():
    split = draw(a_manifest(real=60, fake=90), SETTINGS, seed=1)
    assert (split.label == "fake").sum() == (split.label == "real").sum() == 60


def test_the_same_seed_gives_the_same_sample_whatever_the_order_of_rows():
    table = a_manifest()
    one = draw(table, SETTINGS, seed=3)
    two = draw(table.sample(frac=1, random_state=5), SETTINGS, seed=3)
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(draw(table, SETTINGS, seed=4))


def test_too_many_asked_for_says_how_many_there_are():
    settings = dataclasses.replace(SETTINGS, per_class=61)
    with pytest.raises(UserError, match="61 images of each class were asked for, but there are 60 real and 70 fake"):
        draw(a_manifest(fake=70), settings, seed=1)


def test_too_few_for_three_splits():
    with pytest.raises(UserError, match="4 images of each class leave none for validation"):
        draw(a_manifest(4, 4), SETTINGS, seed=1)


def test_a_split_without_a_class_is_refused():
    everything_alike = dataclasses.replace(SETTINGS, near_duplicate_bits=128)
    with pytest.raises(
        UserError, match=r"no real image is left for validation.* subsample\.near_duplicate_bits \(128\)"
    ):
        draw(a_manifest(), everything_alike, seed=1)
    table = a_manifest()
    fakes = table.label == "fake"
    table.loc[fakes, HASHES] = table.loc[60, HASHES].to_list()
    with pytest.raises(
        UserError,
        match=r"no fake image is left for validation.* 60 of the 120 images drawn form one near-duplicate group",
    ):
        draw(table, SETTINGS, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_stay_together_across_classes_and_chains(seed):
    table = a_manifest(seed=seed)
    chain = [3, 70, 20, 100]  # real, fake, real, fake: each 8 bits from the last
    for one, two in itertools.pairwise(chain):
        bits = 8 if one != 20 else 10
        table.loc[two, HASHES] = [flipped(each, bits) for each in table.loc[one, HASHES]]
    table.loc[6, HASHES] = table.loc[5, HASHES]
    split = draw(table, SETTINGS, seed=seed).set_index("path")
    for together in (chain, [5, 6]):
        assert split.loc[table.path[together]].split.nunique() == 1
        assert split.loc[table.path[together]].group.nunique() == 1
    assert split.groupby("group").split.nunique().max() == 1
    assert (split.groupby(["split", "label"]).size().unstack().to_numpy() == [[10, 10], [45, 45], [5, 5]]).all()


def altered(hashes: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
    """Copies, each with up to 2 x bits + 1 of its bits flipped."""
    copies = hashes.copy()
    for row in copies:
        for bit in rng.choice(256, rng.integers(0, 2 * bits + 2), replace=False):
            row[bit // 8] ^= np.uint8(1 << bit % 8)
    return copies


@pytest.mark.parametrize("products", ["few images", "many images", torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [7, 512])
@pytest.mark.parametrize("bits", [0, 1, 5, 10, 44])
def test_groups_agree_with_comparing_all_pairs(bits, block, products, monkeypatch):
    monkeypatch.setattr(splits, "BLOCK", block)
    if products != "few images":
        monkeypatch.setattr(splits, "MANY", 0)
    if isinstance(products, torch.dtype):
        monkeypatch.setattr(splits, "_fast_products", functools.partial(splits._torch_products, products))
    rng = np.random.default_rng(bits)
    both = rng.integers(0, 256, (2, 40, 32), dtype=np.uint8).repeat(
        5, axis=1
    )  # hashes and mirrored hashes of 40 pictures
    both[:, ::3] = both[::-1, ::3]  # a third of the copies is mirrored
    hashes, mirrored = (altered(each, bits, rng) for each in both)

    def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.unpackbits(one[:, None] ^ other[None], axis=2).sum(axis=2, dtype=int)

    direct = (distance(hashes, hashes) + distance(mirrored, mirrored)) / 2
    across = (distance(hashes, mirrored) + distance(mirrored, hashes)) / 2
    expected = connected_components(np.minimum(direct, across) <= bits, directed=False)[1]
    found = near_duplicate_groups(hashes, mirrored, bits)
    assert (np.equal.outer(found, found) == np.equal.outer(expected, expected)).all()
    without_mirroring = connected_components(direct <= bits, directed=False)[0]
    assert 1 < len(np.unique(found)) < without_mirroring
    turned = rng.random(200) < 0.5
    again = near_duplicate_groups(
        np.where(turned[:, None], mirrored, hashes), np.where(turned[:, None], hashes, mirrored), bits
    )
    assert (again == found).all(), "an image and its mirror image are interchangeable"


@pytest.mark.parametrize("length", [8, 32])
def test_products_are_exact_in_bfloat16_up_to_the_longest_hash(length):
    """All products that there can be: of rows that agree in 0 to all bits."""
    bits = 8 * length
    row = np.full(bits, 2, np.float32)
    rows = np.where(np.arange(bits) < np.arange(bits + 1)[:, None], row, -row)
    none = np.zeros_like(rows)
    every = slice(0, bits + 1)
    expected = splits._products(rows, none)(every, every)
    for sums, differences in ((rows, none), (none, rows)):
        found = splits._torch_products(torch.bfloat16, sums, differences)(every, every)
        np.testing.assert_array_equal(found.float().numpy(), expected if sums is rows else np.abs(expected))


@pytest.mark.parametrize(("bits", "tried"), [(256, {torch.float32, torch.bfloat16}), (264, {torch.float32})])
def test_bfloat16_is_tried_only_where_it_is_exact(bits, tried, monkeypatch):
    made, dtypes = splits._torch_products, []
    monkeypatch.setattr(splits, "_torch_products", lambda dtype, *rows: dtypes.append(dtype) or made(dtype, *rows))
    rows = np.full((3, bits), 2, np.float32)
    products = splits._fast_products(rows, np.zeros_like(rows))
    assert set(dtypes) == tried
    assert products(slice(0, 3), slice(0, 3)).float().tolist() == [[4 * bits] * 3] * 3


def picture(seed: int) -> Image.Image:
    """Smooth noise without symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def saved_smaller(image: Image.Image) -> Image.Image:
    """Shrunk and compressed, as web sites serve it."""
    buffer = io.BytesIO()
    image.resize((80, 80)).save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


@pytest.mark.parametrize("mirrored_first", [False, True])
def test_a_mirrored_copy_shares_the_group_of_its_original(shipped, mirrored_first):
    pictures = [picture(seed) for seed in range(60)]
    pictures[30] = saved_smaller(ImageOps.mirror(pictures[7]))
    pictures[50] = ImageOps.flip(pictures[8])  # upside down is another picture
    if mirrored_first:
        pictures = pictures[::-1]
    hashes = [manifest.perceptual_hashes(np.asarray(one)) for one in pictures]
    bits = shipped.subsample.near_duplicate_bits
    groups = near_duplicate_groups(*(unpack_hashes(pd.Series(column)) for column in zip(*hashes, strict=True)), bits)
    pairs = [(row, other) for row, other in itertools.combinations(range(60), 2) if groups[row] == groups[other]]
    assert pairs == [(29, 52) if mirrored_first else (7, 30)]


def test_mirrored_copies_stay_in_one_split():
    table = a_manifest()
    table.loc[100, "phash"], table.loc[100, "phash_mirrored"] = table.phash_mirrored[3], flipped(table.phash[3], 20)
    split = draw(table, SETTINGS, seed=1).set_index("path")
    assert split.loc[table.path[[3, 100]]].group.nunique() == 1
    assert split.group.nunique() == 119


def test_written_tables_read_back(tmp_path):
    split = draw(a_manifest(), SETTINGS, seed=1)
    files.write_table(tmp_path / "split.csv", split)
    pd.testing.assert_frame_equal(read(tmp_path / "split.csv"), split)
    with pytest.raises(UserError, match="dvc repro subsample"):
        read(tmp_path / "none.csv")
