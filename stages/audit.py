"""Before training: does file metadata tell the classes apart? A detector would learn it instead of the images."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from dfganext import files, images, paths, pipeline
from dfganext.data import manifest, split
from dfganext.evaluation import metadata_leak
from dfganext.settings import load_settings
from dfganext.tracking import runs


def main() -> None:
    settings = load_settings()
    with runs.stage_run("audit", settings, reads=[paths.SPLIT, paths.MANIFEST], makes=[paths.AUDIT_METRICS]) as run:
        rows = manifest.read(paths.MANIFEST).merge(split.read(paths.SPLIT)[["path", "split", "group"]], on="path")
        rows = rows[rows.split != split.TEST].reset_index(drop=True)
        if settings.resize.reencode:
            rows["bytes_reencoded"] = reencoded_bytes(rows)
        audit = metadata_leak.measure(rows, settings.seed)

        files.write_json(paths.AUDIT_METRICS, audit)
        groups = audit["groups"].items()
        run.log_metrics({f"{name}_roc_auc": group["roc_auc"] for name, group in groups if group["roc_auc"]})
        run.log_artifact(paths.AUDIT_METRICS, "audit")
        for warning in audit["warnings"]:
            print(f"WARNING: {warning}", file=sys.stderr)


def reencoded_bytes(rows: pd.DataFrame) -> pd.Series:
    """File size of each image's central square, in bytes, after `resize` has re-encoded it."""
    return rows.path.map(lambda path: len(images.to_jpeg(_square(paths.RAW / path))))


def _square(path: Path) -> np.ndarray:
    image = images.read_image(path)
    return images.resize(image, min(image.shape[:2]))


if __name__ == "__main__":
    pipeline.run(main)
