"""The sample: balanced, seeded, and near duplicates on one side."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.sparse.csgraph import connected_components

from dfganext.data import sampling
from dfganext.errors import UserError
from dfganext.settings import Subsample

SETTINGS = Subsample(seed=None, per_class=None, train_to_test=5, validation=0.1, near_duplicate_bits=10)


def a_manifest(real: int = 60, fake: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [("real", number) for number in range(real)] + [("fake", number) for number in range(fake)]
    return pd.DataFrame(
        {
            "path": [f"{label}/{number:05}.png" for label, number in rows],
            "label": [label for label, _ in rows],
            "sha256": [rng.bytes(32).hex() for _ in rows],
            "phash": [rng.bytes(32).hex() for _ in rows],
        }
    )


def flipped(phash: str, bits: int) -> str:
    value = bytearray.fromhex(phash)
    for bit in range(bits):
        value[bit * 5 % 32] ^= 1 << (bit * 3 % 8)
    return bytes(value).hex()


def test_sizes_are_exact_and_balanced():
    split = sampling.draw(a_manifest(), SETTINGS, seed=1)
    counts = split.groupby(["split", "label"]).size()
    for label in ("real", "fake"):
        assert counts["test", label] == 10 and counts["validation", label] == 5 and counts["train", label] == 45
    assert split.path.is_unique and list(split.columns) == list(sampling.COLUMNS)


def test_null_takes_as_many_as_both_have():
    split = sampling.draw(a_manifest(real=60, fake=90), SETTINGS, seed=1)
    assert (split.label == "fake").sum() == (split.label == "real").sum() == 60


def test_the_same_seed_gives_the_same_sample_whatever_the_order_of_rows():
    manifest = a_manifest()
    one = sampling.draw(manifest, SETTINGS, seed=3)
    two = sampling.draw(manifest.sample(frac=1, random_state=5), SETTINGS, seed=3)
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(sampling.draw(manifest, SETTINGS, seed=4))


def test_too_many_asked_for_says_how_many_there_are():
    settings = dataclasses.replace(SETTINGS, per_class=61)
    with pytest.raises(UserError, match="61 images of each class were asked for, but there are 60 real and 70 fake"):
        sampling.draw(a_manifest(fake=70), settings, seed=1)


def test_too_few_for_three_splits():
    with pytest.raises(UserError, match="4 images of each class leave none for validation"):
        sampling.draw(a_manifest(4, 4), SETTINGS, seed=1)


def test_a_split_without_a_class_is_refused():
    everything_alike = dataclasses.replace(SETTINGS, near_duplicate_bits=128)
    with pytest.raises(
        UserError, match=r"no real image is left for validation.* subsample\.near_duplicate_bits \(128\)"
    ):
        sampling.draw(a_manifest(), everything_alike, seed=1)
    manifest = a_manifest()
    fakes = manifest.label == "fake"
    manifest.loc[fakes, "phash"] = manifest.phash[fakes].iloc[0]
    with pytest.raises(UserError, match=r"no fake image is left for validation.* 60 of the 120 drawn count as one"):
        sampling.draw(manifest, SETTINGS, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_stay_together_across_classes_and_chains(seed):
    manifest = a_manifest(seed=seed)
    chain = [3, 70, 20, 100]  # real, fake, real, fake: each 8 bits from the last
    for one, two in itertools.pairwise(chain):
        manifest.loc[two, "phash"] = flipped(manifest.phash[one], 8 if one != 20 else 10)
    manifest.loc[[5, 6], "phash"] = manifest.phash[5]
    split = sampling.draw(manifest, SETTINGS, seed=seed).set_index("path")
    for together in (chain, [5, 6]):
        assert split.loc[manifest.path[together]].split.nunique() == 1
        assert split.loc[manifest.path[together]].group.nunique() == 1
    assert split.groupby("group").split.nunique().max() == 1
    assert (split.groupby(["split", "label"]).size().unstack().to_numpy() == [[10, 10], [45, 45], [5, 5]]).all()


@pytest.mark.parametrize("bits", [0, 1, 5, 10, 44])
def test_groups_agree_with_comparing_all_pairs(bits):
    rng = np.random.default_rng(bits)
    seeds = rng.integers(0, 256, (40, 32), dtype=np.uint8)
    hashes = np.repeat(seeds, 5, axis=0)
    for row in hashes:
        for bit in rng.choice(256, rng.integers(0, 2 * bits + 2), replace=False):
            row[bit // 8] ^= np.uint8(1 << bit % 8)
    distance = np.unpackbits(hashes[:, None] ^ hashes[None], axis=2).sum(axis=2)
    expected = connected_components(distance <= bits, directed=False)[1]
    found = sampling.near_duplicate_groups(hashes, bits)
    assert (np.equal.outer(found, found) == np.equal.outer(expected, expected)).all()
    assert len(np.unique(found)) > 1


def test_written_tables_read_back(tmp_path):
    split = sampling.draw(a_manifest(), SETTINGS, seed=1)
    sampling.write(tmp_path / "split.csv", split)
    pd.testing.assert_frame_equal(sampling.read(tmp_path / "split.csv"), split)
    with pytest.raises(UserError, match="dvc repro subsample"):
        sampling.read(tmp_path / "none.csv")
