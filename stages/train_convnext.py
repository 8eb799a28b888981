"""Train the classifier and keep its best epoch."""

from dataclasses import asdict, replace
from pathlib import Path

from dfganext import paths, pipeline, settings, tracking
from dfganext.data import arrays, sampling
from dfganext.models import classifier
from dfganext.training import checkpoints
from dfganext.training import classifier as training
from dfganext.training.curves import Curves


def main() -> None:
    chosen = settings.load()
    images = paths.images_of_size(chosen.convnext.size)
    weights = [path for path in [Path(chosen.convnext.weights)] if path.is_file()]
    inputs = {str(path): tracking.sha256_of(path) for path in (images, *weights)}
    decisive = {"convnext": asdict(chosen.convnext), "loss": chosen.loss, "seed": chosen.seed, "files": inputs}
    with (
        checkpoints.resumable(paths.work(), "convnext", **decisive) as checkpoint,
        tracking.stage_run(
            "train_convnext", chosen, reads=[paths.SPLIT, images, *weights], makes=[paths.CONVNEXT]
        ) as run,
    ):
        curves = Curves(run.log_metrics)
        train, validation = (arrays.read(images, split) for split in (sampling.TRAIN, sampling.VALIDATION))
        history, config = training.train(
            train, validation, chosen.convnext, chosen.loss, chosen.seed, chosen.machine, checkpoint, curves
        )
        classifier.save(paths.CONVNEXT, history.best_state, replace(config, **asdict(chosen.resize)))
        curves.write(history, paths.CONVNEXT_CURVES, paths.CONVNEXT_SPEED)
        run.log_metrics({"best_epoch": history.best_epoch})
        run.log_artifact(paths.CONVNEXT_CURVES, "curves")


if __name__ == "__main__":
    pipeline.run(main)
