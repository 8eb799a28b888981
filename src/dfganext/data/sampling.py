"""Draw a balanced, seeded sample and split it, keeping images that look alike on one side of every boundary."""

from __future__ import annotations

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
BLOCK = 512
"""Rows of hashes compared at a time."""
COLUMNS = ("path", "label", "split", "sha256", "group")


def draw(manifest: pd.DataFrame, settings: Subsample, seed: int) -> pd.DataFrame:
    """Draw `per_class` images of each class, then test, validation and training images from them.

    The result depends on the rows' content, the settings and the seed alone, not on the rows' order. Test takes one part to
    `train_to_test` parts of training; validation is then taken out of training. Images whose perceptual hashes are at most
    `near_duplicate_bits` apart, directly or through others, share a group and a split, whatever their labels.

    Args:
        manifest: columns path, label, sha256, phash (hexadecimal), a row an image.

    Returns:
        Columns path, label, split, sha256, group, sorted by path. Classes are balanced in every split unless a group is
        too large to place.

    Raises:
        UserError: more images asked for than there are, too few for three splits, or so many that look alike that a split is
            left without a class.
    """
    manifest = manifest.sort_values("path", ignore_index=True)
    counts = {name: int((manifest.label == name).sum()) for name in NAMES}
    per_class = min(counts.values()) if settings.per_class is None else settings.per_class
    if per_class > min(counts.values()):
        raise UserError(
            f"subsample.per_class: {per_class} images of each class were asked for, but there are "
            f"{' and '.join(f'{counts[name]} {name}' for name in NAMES)}; ask for at most {min(counts.values())}."
        )
    sizes = split_sizes(per_class, settings)
    drawn = []
    for code, name in enumerate(NAMES):
        rows = manifest.index[manifest.label == name].to_numpy()
        drawn.append(np.random.default_rng([seed, code]).permutation(rows)[:per_class])
    sample = manifest.loc[np.sort(np.concatenate(drawn))].reset_index(drop=True)
    sample["group"] = near_duplicate_groups(unpack_hashes(sample.phash), settings.near_duplicate_bits)
    sample["split"] = _place(sample, sizes, np.random.default_rng([seed, len(NAMES)]))
    _require_both_classes(sample, settings.near_duplicate_bits)
    return sample[list(COLUMNS)]


def write(path: Path, split: pd.DataFrame) -> None:
    """Write a split table, the same bytes every time."""
    files.write_table(path, split)


def read(path: Path) -> pd.DataFrame:
    """Read back what `write` wrote. UserError if it is missing."""
    try:
        return pd.read_csv(path, dtype={"path": str, "label": str, "split": str, "sha256": str}, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro subsample` first.") from None


def split_sizes(per_class: int, settings: Subsample) -> dict[str, int]:
    """Images of each class in each split. UserError where one would be empty."""
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
    """Hexadecimal strings of one length -> uint8 (n, bytes)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), -1)


def near_duplicate_groups(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Connected groups of hashes at most `bits` apart.

    All pairs are compared, by matrix products of the bits as -1 and 1, whose dot product is (length - 2 x distance). That
    takes 1 s for 12,000 hashes of 256 bits, and memory for a block of rows.

    Args:
        hashes: uint8, (n, bytes).
        bits: largest Hamming distance that joins two.

    Returns:
        int, (n,): group numbers, counted from 0 in order of first appearance.
    """
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1  # whole numbers up to 2^24 are exact in float32
    nearest = signs.shape[1] - 2 * bits
    left, right = [], []
    for start in range(0, len(signs), BLOCK):
        rows, columns = np.nonzero(signs[start : start + BLOCK] @ signs[start:].T >= nearest)
        left.append(rows + start)
        right.append(columns + start)
    edges = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(len(signs), len(signs)))
    return pd.factorize(connected_components(graph, directed=False)[1])[0]


def _place(sample: pd.DataFrame, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """A split for each row: groups in random order, each whole, into the first split with room for it; else into training."""
    counts = np.stack(
        [np.bincount(sample.group[sample.label == name], minlength=sample.group.max() + 1) for name in NAMES]
    )
    room = {split: np.full(len(NAMES), sizes[split]) for split in (TEST, VALIDATION, TRAIN)}
    chosen = np.empty(counts.shape[1], dtype=object)
    for group in rng.permutation(counts.shape[1]):
        split = next((name for name, left in room.items() if np.all(counts[:, group] <= left)), TRAIN)
        room[split] -= counts[:, group]
        chosen[group] = split
    return chosen[sample.group.to_numpy()]


def _require_both_classes(sample: pd.DataFrame, bits: int) -> None:
    held = set(zip(sample.split, sample.label, strict=True))
    for split in SPLITS:
        for label in NAMES:
            if (split, label) not in held:
                raise UserError(
                    f"subsample: no {label} image is left for {split}, because images that look alike stay in one split and "
                    f"{sample.group.value_counts().iloc[0]} of the {len(sample)} drawn count as one: lower "
                    f"subsample.near_duplicate_bits ({bits}), or add images that differ."
                )
