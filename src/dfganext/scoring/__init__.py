"""Predictions for millions of images on Ray: `dfganext score`.

The images of a listing that have no valid row yet are cut into parts. A worker predicts a part's images and writes one Parquet
file, whose name follows from its content: a part that is scored twice is written once. A row is valid while the image's size and
modification time are those of the row. Images whose row is outdated are scored again by the part that replaces the row's file
atomically, so a reader finds one row per path at any time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from tqdm import tqdm

from dfganext.errors import UserError
from dfganext.inference.operating_point import NOT_CALIBRATED
from dfganext.scoring import model as models
from dfganext.scoring import rows
from dfganext.scoring.cluster import ray_for
from dfganext.scoring.parts import PART_IMAGES, Plan
from dfganext.scoring.stores import Folder, images_at


@dataclass(frozen=True)
class Summary:
    """Where the rows are, and numbers of images: of the listing, with a valid row from before, scored in this run, those of
    them that had an outdated row, and unreadable ones, whose row (new or from before) has an error."""

    out: str
    total: int
    kept: int
    scored: int = 0
    rescored: int = 0
    unreadable: int = 0


def score(
    places: Sequence[str],
    out: str,
    model: str | None = None,
    workers: int | None = None,
    part_images: int = PART_IMAGES,
    threshold: float | None = None,
) -> Summary:
    """Predict the images that have no valid row in a folder, and write their rows to it. A bar on a terminal shows the progress.

    Args:
        places: files, folders and globs, or one address in an object store; see `stores.images_at`.
        out: folder of the rows, Parquet files with `rows.SCHEMA`, local or in an object store.
        model: as for `registry.resolve`; by default the champion.
        workers: processes; by default one per core, or WORKERS_PER_GPU per GPU where there are GPUs.
        part_images: images per Parquet file.
        threshold: an image is fake where p_fake is above it; by default the model's own.

    Raises:
        UserError: Ray cannot be reached, no image or no model is found, a worker cannot load the model, out contains other files,
            or rows cannot be written. Parts that were written stay, and the next run continues from there.
    """
    listing = images_at(places)
    folder = Folder.at(out)
    detector = models.load(model, threshold)
    if not detector.calibrated:
        print(f"dfganext: {NOT_CALIBRATED}", file=sys.stderr)
    plan = Plan(listing, rows.ScoredRows.read(folder), part_images)
    parts = iter(plan)
    first = next(parts, None)
    if not plan.total:
        raise UserError(f"There is no image in {listing.name}: give files, or folders with images in them.")
    detector = rows.claim(folder, detector)
    if first is None:
        return Summary(folder.name, plan.total, plan.kept, unreadable=plan.unreadable)
    scored = rescored = unreadable = 0
    with (
        ray_for(workers) as cluster,
        closing(cluster.score_parts(chain([first], parts), detector, listing, folder)) as results,
        tqdm(total=plan.total, initial=plan.kept, unit="image", disable=None) as bar,
    ):
        for result in results:
            if result.failure:
                raise UserError(f"{result.failure}: correct this and start again; the rows written so far stay.")
            scored, rescored = scored + result.scored, rescored + result.rescored
            unreadable += result.unreadable
            bar.update(result.scored)
    return Summary(folder.name, plan.total, plan.kept, scored, rescored, plan.unreadable + unreadable)
