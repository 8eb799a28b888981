"""Classifiers of other architectures, with all other settings the same, compared with ConvNeXt-T on the same test images.

The paper concludes that ConvNeXt supersedes ResNets and Transformers, and trained neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dfganext.report.table1 import NETWORK, Record, Row, by_logit, matching, row_of
from dfganext.settings import Settings

SETTING = "convnext.architecture"


def collect(records: Sequence[Record], settings: Settings) -> list[Row]:
    """A row for each of the setting `architectures`, including those without a record; arguments as for `table1.collect`."""
    variation = f"{settings.convnext.size} px, loss {settings.loss}"
    return [
        row_of(f"{NETWORK}_{name}", name, variation, matching(records, settings, NETWORK, {SETTING: name}), by_logit)
        for name in settings.architectures
    ]


def experiments(records: Sequence[Record], settings: Settings, seeds: int) -> list[dict[str, Any]]:
    """Settings of the experiments that are missing for every row to have `seeds` seeds, from settings.seed upwards."""
    done = {row.model: row.seeds for row in collect(records, settings)}
    return [
        {"seed": seed, SETTING: name}
        for seed in range(settings.seed, settings.seed + seeds)
        for name in settings.architectures
        if seed not in done[name]
    ]
