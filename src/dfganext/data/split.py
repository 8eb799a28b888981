"""Draws a balanced, seeded sample and splits it into train, validation and test; near duplicates stay in one split."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dfganext import files
from dfganext.errors import UserError
from dfganext.labels import NAMES
from dfganext.settings import Subsample

if TYPE_CHECKING:
    import torch

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
COLUMNS = ("path", "label", "split", "sha256", "group")

NEAR_DUPLICATE_BITS = 44
"""The setting subsample.near_duplicate_bits as shipped."""

BLOCK = 768
"""Number of images whose distances to as many others are computed at once."""

MANY = 10_000
"""Images from which the time to import PyTorch pays."""

BFLOAT16_BITS = 256
"""Longest hash whose products bfloat16 holds exactly."""

Products = Callable[[slice, slice], Any]
"""Rows of two blocks -> a matrix, of NumPy or PyTorch."""


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
    one image mirrored, these are between the first's hash and the second's mirrored hash, and the reverse. All pairs are compared;
    memory holds one block of distances.

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
    signs, others = (np.unpackbits(each, axis=1).astype(np.int8) * 2 - 1 for each in (hashes, mirrored))
    count, length = signs.shape
    products = (_products if count < MANY else _fast_products)(signs + others, signs - others)
    nearest = 4 * (length - 2 * bits)
    rows, columns = [np.empty(0, int)], [np.empty(0, int)]
    for start in range(0, count, BLOCK):
        for begin in range(start, count, BLOCK):
            found = products(slice(start, start + BLOCK), slice(begin, begin + BLOCK))
            if found.max() >= nearest:
                near = np.nonzero(np.asarray(found >= nearest))
                rows.append(near[0] + start)
                columns.append(near[1] + begin)
    edges = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(count, count))
    return pd.factorize(connected_components(graph, directed=False)[1])[0]


def _products(sums: np.ndarray, differences: np.ndarray) -> Products:
    """The function that multiplies blocks of rows: sums.sums' + |differences.differences'|; exact, as all are whole numbers."""
    s, d = (each.astype(np.float32) for each in (sums, differences))
    return lambda one, other: np.abs(d[one] @ d[other].T) + s[one] @ s[other].T


def _fast_products(sums: np.ndarray, differences: np.ndarray) -> Products:
    """The same by PyTorch, in bfloat16 where that is exact and, as measured on one block, faster on this processor."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        products, first = _torch_products(dtype, sums[:BLOCK], differences[:BLOCK]), slice(0, BLOCK)
        products(first, first)
        start = time.perf_counter()
        products(first, first)
        return time.perf_counter() - start

    exact = [torch.float32] if sums.shape[1] > BFLOAT16_BITS else [torch.float32, torch.bfloat16]
    return _torch_products(min(exact, key=seconds), sums, differences)


def _torch_products(dtype: torch.dtype, sums: np.ndarray, differences: np.ndarray) -> Products:
    """Entries are 0 and +-2, so results are multiples of 4 up to 4 x length: for 256 bits, no more than 8 significant bits."""
    import torch

    s, d = (torch.from_numpy(each).to(dtype) for each in (sums, differences))
    return lambda one, other: (d[one] @ d[other].T).abs_().addmm_(s[one], s[other].T)


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
