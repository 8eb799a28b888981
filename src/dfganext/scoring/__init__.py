"""Verdicts on very many images: `dfganext score`, on Ray Data.

A row is the verdict on one content of an image, which the image's size and time of modification tell from the next. The images
that have no row yet are cut into parts. A worker judges a whole part and writes it as one Parquet file under a name that follows
from its content, so that a part which is done twice, since its worker died before it could say so, is still there once. Images
that have changed since, or could not be read for a reason that may have passed, are judged anew by the file that has their rows;
the file with the new rows takes the place of the old one in one go, so that a reader finds one row a path at any time. Ray and pyarrow are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from dfganext.errors import UserError
from dfganext.scoring import model as models
from dfganext.scoring import rows
from dfganext.scoring.cluster import ray_for
from dfganext.scoring.parts import PART_IMAGES, Done, Plan
from dfganext.scoring.stores import folder_at, images_at

PROGRESS_SECONDS = 30.0


@dataclass(frozen=True)
class Summary:
    """How a run ended: where the rows are, and numbers of images.

    total: in IN, each once. before: of these, had a row already that still holds. judged: got a row now. again: of these, had one
    that did not hold any more. unread: have a row with an error, of now or before. lost: the first and the last path of each part
    that got no rows, since ATTEMPTS workers died of it.
    """

    where: str
    total: int
    before: int
    judged: int
    again: int
    unread: int
    lost: Sequence[tuple[str, str]] = ()


def score(
    places: Sequence[str],
    out: str,
    model: str | None = None,
    workers: int | None = None,
    part_images: int = PART_IMAGES,
    threshold: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Judge the images that have no row in a folder yet, or none that holds, and write their rows to it.

    Args:
        places: files, folders and globs, or one address in an object store; see `stores.images_at`.
        out: folder of the rows, Parquet files with `COLUMNS`, local or in an object store.
        model: as for `registry.resolve`; by default the champion.
        workers: processes that judge; by default one a processor core, where there are GPUs WORKERS_A_GPU for each.
        part_images: images a Parquet file.
        threshold: an image is fake where p_fake is above it; by default the model's own.
        say: is told how far it is, a line now and then, and what had to be assumed.

    Raises:
        UserError: Ray is missing or cannot be reached, there is no image or no model, out holds something else, or its rows
            cannot be written. Parts that were written stay, and the next run goes on from there.
    """
    _needs_ray()
    listing = images_at(places)
    folder = folder_at(out)
    chosen = rows.agreed(folder, models.load(model, threshold))
    if not chosen.calibrated:
        from dfganext.inference.detector import NOT_CALIBRATED

        say(f"dfganext: {NOT_CALIBRATED}")
    plan = Plan(listing, rows.Scored.read(folder), part_images)
    parts = iter(plan)
    first = next(parts, None)
    if not plan.total:
        raise UserError(f"There is no image in {listing.name}: give files, or folders with images in them.")
    if first is None:
        return Summary(folder.name, plan.total, plan.before, 0, 0, plan.unread_before)
    with ray_for(workers) as cluster:
        chosen = rows.claim(folder, chosen)
        done = cluster.predict(chain([first], parts), chosen, listing, folder)
        if plan.unversioned:
            say(
                f"dfganext: {plan.unversioned:,} rows in {folder.name}, of an earlier version, do not say which content of their "
                "image they are of: these images are judged again."
            )
        judged, again, unread, lost = _follow(done, plan, say)
    return Summary(folder.name, plan.total, plan.before, judged, again, plan.unread_before + unread, lost)


def _needs_ray() -> None:
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise UserError("Scoring runs on Ray, which is not installed: pip install 'df-ganext[scale]'.")


def _follow(
    done: Iterator[Done], plan: Plan, say: Callable[[str], None]
) -> tuple[int, int, int, Sequence[tuple[str, str]]]:
    """Go through what is done, and tell of it now and then; UserError where a part failed for a reason that others share.

    Returns:
        Images judged, those of them that had a row before, those with an error, and the first and last path of each part that was lost.
    """
    judged = again = unread = 0
    lost: list[tuple[str, str]] = []
    began = said = time.monotonic()
    for one in done:
        if one.failure:
            raise UserError(f"{one.failure}: put it right and start again; the rows written so far stay.")
        judged, unread = judged + one.images, unread + one.unread
        again += one.images if one.again else 0
        lost += [plan.ends[one.name]] if one.lost else []
        now = time.monotonic()
        if now > said + PROGRESS_SECONDS:
            said = now
            say(_progress(plan, judged, now - began))
    return judged, again, unread, lost


def _progress(plan: Plan, judged: int, seconds: float) -> str:
    speed = max(judged, 1) / seconds
    left = plan.total - plan.before - judged
    return f"{plan.before + judged:,} of {plan.total:,} images; {speed:,.1f} a second, {left / speed / 60:,.0f} minutes left"
