"""Draw a balanced sample and split it into train, validation and test."""

import pandas as pd

from dfganext import paths, pipeline, settings
from dfganext.data import manifest
from dfganext.data import split as sampling
from dfganext.labels import NAMES
from dfganext.tracking import runs as tracking


def main() -> None:
    chosen = settings.load()
    with tracking.stage_run("subsample", chosen, reads=[paths.MANIFEST], makes=[paths.SPLIT]) as run:
        split = sampling.draw(manifest.read(paths.MANIFEST), chosen.subsample, chosen.subsample.seed)
        sampling.write(paths.SPLIT, split)
        counts = pd.crosstab(split.split, split.label)
        run.log_metrics({f"{row.Index}_{label}": getattr(row, label) for row in counts.itertuples() for label in NAMES})
        run.log_metrics({"near_duplicates": len(split) - split.group.nunique()})
        print(counts.to_string())


if __name__ == "__main__":
    pipeline.run(main)
