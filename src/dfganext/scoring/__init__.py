"""Predictions for millions of images on Ray: `dfganext score`.

The images of a listing that have no valid row yet are cut into parts. A worker predicts a part's images and writes one Parquet
file, whose name follows from its content: a part that is scored twice is written once. A row is valid while the image's size and
modification time are those of the row. Images whose row is outdated are scored again by the part that replaces the row's file
atomically, so a reader finds one row per path at any time. Ray and pyarrow are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from dfganext.errors import UserError
from dfganext.scoring import model as models
from dfganext.scoring import rows
from dfganext.scoring.cluster import ray_for
from dfganext.scoring.parts import PART_IMAGES, PartResult, Plan
from dfganext.scoring.stores import folder_at, images_at

PROGRESS_SECONDS = 30.0


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
    on_progress: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Predict the images that have no valid row in a folder, and write their rows to it.

    Args:
        places: files, folders and globs, or one address in an object store; see `stores.images_at`.
        out: folder of the rows, Parquet files with `rows.COLUMNS`, local or in an object store.
        model: as for `registry.resolve`; by default the champion.
        workers: processes; by default one per core, or WORKERS_PER_GPU per GPU where there are GPUs.
        part_images: images per Parquet file.
        threshold: an image is fake where p_fake is above it; by default the model's own.
        on_progress: called with a line about the progress every PROGRESS_SECONDS, and with warnings.

    Raises:
        UserError: Ray is missing or cannot be reached, there is no image or no model, out holds something else, or its rows
            cannot be written. Parts that were written stay, and the next run continues from there.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise UserError("Scoring runs on Ray, which is not installed: pip install 'df-ganext[scale]'.")
    listing = images_at(places)
    folder = folder_at(out)
    detector = rows.check_model(folder, models.load(model, threshold))
    if not detector.calibrated:
        from dfganext.inference.detector import NOT_CALIBRATED

        on_progress(f"dfganext: {NOT_CALIBRATED}")
    plan = Plan(listing, rows.ScoredRows.read(folder), part_images)
    parts = iter(plan)
    first = next(parts, None)
    if not plan.total:
        raise UserError(f"There is no image in {listing.name}: give files, or folders with images in them.")
    if first is None:
        return Summary(folder.name, plan.total, plan.kept, unreadable=plan.unreadable)
    with ray_for(workers) as cluster:
        detector = rows.claim(folder, detector)
        references = cluster.put(chain([first], parts))
        if plan.unversioned:
            on_progress(
                f"dfganext: {plan.unversioned:,} rows in {folder.name}, of an earlier version, have no size and time of their "
                "image: these images are scored again."
            )
        with closing(cluster.score_parts(references, detector, listing, folder)) as results:
            return _follow(results, plan, folder.name, on_progress)


def _follow(results: Iterator[PartResult], plan: Plan, out: str, on_progress: Callable[[str], None]) -> Summary:
    """Sum up the results and report progress; UserError where a part failed for a reason that other parts share."""
    scored, rescored, unreadable = 0, 0, plan.unreadable
    start = reported = time.monotonic()
    for result in results:
        if result.failure:
            raise UserError(f"{result.failure}: correct this and start again; the rows written so far stay.")
        scored, rescored = scored + result.scored, rescored + result.rescored
        unreadable += result.unreadable
        now = time.monotonic()
        if now > reported + PROGRESS_SECONDS:
            reported = now
            on_progress(_progress(plan, scored, now - start))
    return Summary(out, plan.total, plan.kept, scored, rescored, unreadable)


def _progress(plan: Plan, scored: int, seconds: float) -> str:
    speed = max(scored, 1) / seconds
    minutes = (plan.total - plan.kept - scored) / speed / 60
    return f"{plan.kept + scored:,} of {plan.total:,} images; {speed:,.1f} per second, {minutes:,.0f} minutes left"
