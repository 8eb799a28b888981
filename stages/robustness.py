"""Measure the detector's accuracy on test images that are compressed, blurred, downscaled, noisy or cropped."""

import numpy as np

from dfganext import files, labels, paths, pipeline
from dfganext.data import arrays
from dfganext.data.split import TEST
from dfganext.evaluation import robustness
from dfganext.inference.detector import Detector
from dfganext.settings import load_settings
from dfganext.tracking import runs
from dfganext.training import compute


def main() -> None:
    settings = load_settings()
    with runs.stage_run("robustness", settings, reads=[paths.SPLIT, paths.CONVNEXT], makes=[paths.ROBUSTNESS]) as run:
        compute.make_repeatable()
        detector = Detector.load(paths.CONVNEXT, paths.OPERATING_POINT, compute.device(settings.machine.device))
        test = arrays.read(paths.images_of_size(settings.convnext.size), TEST)
        rng = np.random.default_rng(settings.seed)
        drawn = [rng.permutation(test.only(label))[: settings.robustness.per_class] for label in labels.ALL]
        rows = np.sort(np.concatenate(drawn))

        def scores_of(degraded: np.ndarray) -> np.ndarray:
            """p_fake and novelty as from the served model: a degraded image gets the same preprocessing."""
            return detector.scores(np.stack([detector.config.prepare(image) for image in degraded]))

        pixels, true, groups = test.pixels[rows], test.labels[rows], test.groups[rows]
        table = robustness.measure(
            scores_of, pixels, true, detector.threshold, seed=settings.seed, groups=groups, rule=detector.decision
        )
        augment = settings.convnext.augment
        conditions = map(robustness.Condition, table["transform"], table.strength)
        table["trained_on"] = [robustness.is_trained_on(condition, augment) for condition in conditions]
        files.write_table(paths.ROBUSTNESS, table)
        run.log_artifact(paths.ROBUSTNESS, "robustness")
        names = "accuracy_" + table["transform"] + table.strength.map("_{:g}".format)
        run.log_metrics(dict(zip(names, table.accuracy, strict=True)))


if __name__ == "__main__":
    pipeline.run(main)
