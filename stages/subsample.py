"""Draw a balanced sample and split it into train, validation and test."""

import pandas as pd

from dfganext import files, paths, pipeline
from dfganext.data import manifest, split
from dfganext.labels import NAMES
from dfganext.settings import load_settings
from dfganext.tracking import runs


def main() -> None:
    settings = load_settings()
    with runs.stage_run("subsample", settings, reads=[paths.MANIFEST], makes=[paths.SPLIT]) as run:
        sample = split.draw(manifest.read(paths.MANIFEST), settings.subsample, settings.subsample.seed)
        files.write_table(paths.SPLIT, sample)
        counts = pd.crosstab(sample.split, sample.label)
        run.log_metrics({f"{row.Index}_{label}": getattr(row, label) for row in counts.itertuples() for label in NAMES})
        run.log_metrics({"near_duplicates": len(sample) - sample.group.nunique()})
        print(counts.to_string())


if __name__ == "__main__":
    pipeline.run(main)
