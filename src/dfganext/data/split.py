"""Draws a balanced, seeded sample and splits it into train, validation and test; near duplicates stay in one split."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dfganext import files
from dfganext.errors import UserError
from dfganext.labels import NAMES
from dfganext.settings import Subsample

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
COLUMNS = ("path", "label", "split", "sha256", "group")

NEAR_DUPLICATE_BITS = 44
"""The setting subsample.near_duplicate_bits as shipped."""

BLOCK = 512
"""Number of images whose distances to as many others are computed at once."""


def draw(manifest: pd.DataFrame, settings: Subsample, seed: int) -> pd.DataFrame:
    """Draw `per_class` images of each class, and split them into test, validation and training images.

    The result does not depend on the order of the rows. Training gets `train_to_test` times as many images as test; validation is
    then taken out of training. Each near-duplicate group (`near_duplicate_groups`), whatever its labels, is in one split.

    Args:
        manifest: columns path, label, sha256, phash and phash_mirrored (hexadecimal), one row per image.

    Returns:
        Columns path, label, split, sha256, group, sorted by path. Classes are balanced in every split unless a group is
        too large to fit.

    Raises:
        UserError: there are fewer images than requested, too few for three splits, or so many near duplicates that a split is
            left without a class.
    """
    manifest = manifest.sort_values("path", ignore_index=True)
    per_class = _images_per_class(manifest, settings)
    sizes = split_sizes(per_class, settings)
    drawn = [
        np.random.default_rng([seed, code]).permutation(manifest.index[manifest.label == name])[:per_class]
        for code, name in enumerate(NAMES)
    ]
    sample = manifest.loc[np.sort(np.concatenate(drawn))].reset_index(drop=True)
    hashes, mirrored = unpack_hashes(sample.phash), unpack_hashes(sample.phash_mirrored)
    sample["group"] = near_duplicate_groups(hashes, mirrored, settings.near_duplicate_bits)
    sample["split"] = _assign_splits(sample, sizes, np.random.default_rng([seed, len(NAMES)]))
    _require_both_classes(sample, settings.near_duplicate_bits)
    return sample[list(COLUMNS)]


def read(path: Path) -> pd.DataFrame:
    """Read the table that the stage subsample writes. UserError if it is missing."""
    try:
        return pd.read_csv(path, dtype={"path": str, "label": str, "split": str, "sha256": str}, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro subsample` first.") from None


def is_from(images: pd.DataFrame, folder: Path) -> bool:
    """Whether every image is a copy of one in folder/real or folder/fake; images: column sha256."""
    found = (file for name in NAMES for file in (folder / name).rglob("*") if file.is_file())
    return set(images.sha256) <= {files.sha256_of(file) for file in found}


def split_sizes(per_class: int, settings: Subsample) -> dict[str, int]:
    """Images of each class in each split. UserError if one would be empty."""
    test = round(per_class / (settings.train_to_test + 1))
    validation = round((per_class - test) * settings.validation)
    sizes = {TEST: test, VALIDATION: validation, TRAIN: per_class - test - validation}
    empty = [name for name, size in sizes.items() if size < 1]
    if empty:
        raise UserError(
            f"subsample: {per_class} images of each class leave none for {empty[0]} at train_to_test "
            f"{settings.train_to_test:g} and validation {settings.validation:g}; add images or change these."
        )
    return sizes


def unpack_hashes(hashes: pd.Series) -> np.ndarray:
    """Hexadecimal strings of equal length -> uint8 (n, bytes)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), -1)


def groups_beside(images: pd.DataFrame, others: pd.DataFrame, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Near-duplicate groups among some images and others, such as the training images of a detector.

    Args:
        images, others: n and m rows, columns phash and phash_mirrored.
        bits: as for `near_duplicate_groups`.

    Returns:
        int (n,), the group of each image; bool (n,), whether its group holds one of the others.
    """
    hashes, mirrored = (unpack_hashes(pd.concat([images[name], others[name]])) for name in ("phash", "phash_mirrored"))
    groups = near_duplicate_groups(hashes, mirrored, bits)
    own = groups[: len(images)]
    return own, np.isin(own, groups[len(images) :])


def near_duplicate_groups(hashes: np.ndarray, mirrored: np.ndarray, bits: int) -> np.ndarray:
    """Connected groups of images that are at most `bits` apart, as they are or with one of them mirrored.

    The distance of two images is the mean of two Hamming distances: between their hashes and between their mirrored hashes. With
    one image mirrored, these are between the first's hash and the second's mirrored hash, and the reverse. All pairs are compared,
    which takes 1 s for 12,000 hashes of 256 bits; memory holds one block of distances.

    Args:
        hashes: uint8, (n, bytes).
        mirrored: the same of the images' mirror images.
        bits: largest distance within which two images join.

    Returns:
        int, (n,): group numbers, counted from 0 in order of first appearance.
    """
    # With bits s of a hash and m of a mirrored hash as -1 and 1, s.s' = length - 2 x distance, and
    #   (s + m).(s' + m') = (s.s' + m.m') + (s.m' + m.s')
    #   (s - m).(s' - m') = (s.s' + m.m') - (s.m' + m.s')
    # so two products give both distances: one product plus the absolute value of the other is twice the larger bracket.
    signs, others = (np.unpackbits(each, axis=1).astype(np.float32) * 2 - 1 for each in (hashes, mirrored))
    sums, differences = signs + others, signs - others  # whole numbers up to 2^24 are exact in float32
    nearest = 4 * (signs.shape[1] - 2 * bits)
    left, right = [], []
    for start in range(0, len(sums), BLOCK):
        one = slice(start, start + BLOCK)
        for begin in range(start, len(sums), BLOCK):
            other = slice(begin, begin + BLOCK)
            products = differences[one] @ differences[other].T
            np.abs(products, out=products)
            products += sums[one] @ sums[other].T
            rows, columns = np.nonzero(products >= nearest)
            left.append(rows + start)
            right.append(columns + begin)
    edges = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(len(sums), len(sums)))
    return pd.factorize(connected_components(graph, directed=False)[1])[0]


def _images_per_class(manifest: pd.DataFrame, settings: Subsample) -> int:
    counts = {name: int((manifest.label == name).sum()) for name in NAMES}
    available = min(counts.values())
    per_class = available if settings.per_class is None else settings.per_class
    if per_class > available:
        raise UserError(
            f"subsample.per_class: {per_class} images of each class were asked for, but there are "
            f"{' and '.join(f'{counts[name]} {name}' for name in NAMES)}; ask for at most {available}."
        )
    return per_class


def _assign_splits(sample: pd.DataFrame, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """The split of each row: each group, in random order, goes whole into the first split with room for it, else into training."""
    counts = np.stack(
        [np.bincount(sample.group[sample.label == name], minlength=sample.group.max() + 1) for name in NAMES]
    )
    room = {split: np.full(len(NAMES), sizes[split]) for split in (TEST, VALIDATION, TRAIN)}
    assigned = np.empty(counts.shape[1], dtype=object)
    for group in rng.permutation(counts.shape[1]):
        split = next((name for name, left in room.items() if np.all(counts[:, group] <= left)), TRAIN)
        room[split] -= counts[:, group]
        assigned[group] = split
    return assigned[sample.group.to_numpy()]


def _require_both_classes(sample: pd.DataFrame, bits: int) -> None:
    held = set(zip(sample.split, sample.label, strict=True))
    for split, label in product(SPLITS, NAMES):
        if (split, label) not in held:
            raise UserError(
                f"subsample: no {label} image is left for {split}, because near duplicates stay in one split and "
                f"{sample.group.value_counts().iloc[0]} of the {len(sample)} images drawn form one near-duplicate group: "
                f"lower subsample.near_duplicate_bits ({bits}), or add images that differ."
            )
