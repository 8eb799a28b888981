"""Evaluate the classifier on other labelled sets, external/<set>/{real,fake}, at the same decision threshold."""

from typing import Any

import pandas as pd

from dfganext import files, labels, paths, pipeline
from dfganext.data import manifest, split
from dfganext.evaluation import external
from dfganext.inference import labelled
from dfganext.inference.detector import Detector
from dfganext.settings import load_settings
from dfganext.tracking import runs
from dfganext.training import compute


def main() -> None:
    settings = load_settings()
    reads = [paths.SPLIT, paths.CONVNEXT, paths.EXTERNAL]
    with runs.stage_run("external", settings, reads=reads, makes=[paths.EXTERNAL_METRICS]) as run:
        compute.make_repeatable()
        detector = Detector.load(paths.CONVNEXT, paths.OPERATING_POINT, compute.device(settings.machine.device))
        trained_on, own = training_images(), own_predictions()
        training_files, bits = external.describe(trained_on), settings.subsample.near_duplicate_bits
        found: dict[str, dict[str, Any]] = {}
        tables, rejects = [], []
        for folder in sorted(path for path in paths.EXTERNAL.iterdir() if path.is_dir()):
            predicted = labelled.predict(detector, [folder], settings.machine.workers)
            metrics = external.evaluate_set(predicted.images, detector.threshold, trained_on, bits, own)
            metrics |= {"files_refused": len(predicted.rejects), "training_files": training_files}
            found[folder.name] = metrics
            tables.append(predicted.images[["path", "label", *labelled.COLUMNS]].assign(set=folder.name))
            rejects.append(predicted.rejects.assign(set=folder.name))
            run.log_metrics(external.flat_metrics(folder.name, metrics))
            print(external.summary(folder.name, metrics))

        files.write_json(paths.EXTERNAL_METRICS, found)
        files.write_table(paths.EXTERNAL_PLOT, external.plot_table(found))
        for name, parts in (("predictions", tables), ("rejects", rejects)):
            files.write_table(paths.EXTERNAL_RESULTS / f"{name}.csv", pd.concat(parts) if parts else pd.DataFrame())
        for path in (paths.EXTERNAL_RESULTS, paths.EXTERNAL_METRICS, paths.EXTERNAL_PLOT):
            run.log_artifact(path, "external")


def training_images() -> pd.DataFrame:
    """The rows of the manifest of the training images."""
    table = manifest.read(paths.MANIFEST).merge(split.read(paths.SPLIT)[["path", "split"]], on="path")
    return table[table.split == split.TRAIN]


def own_predictions() -> external.Own:
    """Predictions for the test images."""
    table = pd.read_csv(paths.PREDICTIONS)
    return external.Own(table.label.map(labels.index_of).to_numpy(), table.p_fake.to_numpy(), table.group.to_numpy())


if __name__ == "__main__":
    pipeline.run(main)
