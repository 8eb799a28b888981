"""Train the classifier, in one process or several, and keep its best epoch."""

import sys
from dataclasses import asdict, replace
from functools import partial

from dfganext import paths, pipeline
from dfganext.data import arrays
from dfganext.data import split as sampling
from dfganext.models import classifier
from dfganext.settings import Settings, load_settings
from dfganext.tracking import runs
from dfganext.training import checkpoints, compute, distributed
from dfganext.training import classifier as training
from dfganext.training.curves import Curves


def main() -> None:
    settings = load_settings()
    command = [sys.executable, "-m", "stages.train_convnext"]
    distributed.run(partial(train, settings), settings.convnext.processes, settings.machine.device, command)


def train(settings: Settings, group: distributed.Group) -> None:
    """Train as one of a group, whose first process alone writes and logs."""
    images = paths.images_of_size(settings.convnext.size)
    shown, validation = (arrays.read(images, split) for split in (sampling.TRAIN, sampling.VALIDATION))
    machine, precision = compute.resolve(settings.machine, settings.convnext.precision)
    what = (shown, validation, replace(settings.convnext, precision=precision), settings.loss, settings.seed, machine)
    inputs = training.inputs_of(*what)
    group.check_same(inputs)
    fit = partial(training.train, *what, group=group)
    if not group.first:
        fit()
        return
    with (
        checkpoints.resumable(paths.work(), "convnext", inputs, training.MODULES, training.LIBRARIES) as checkpoint,
        runs.stage_run(
            "train_convnext", settings, reads=[paths.SPLIT, images, paths.WEIGHTS], makes=[paths.CONVNEXT]
        ) as run,
    ):
        run.set_tags({"processes": group.size, "precision": precision, "device": machine.device})
        curves = Curves(run.log_metrics)
        history, config = fit(checkpoint=checkpoint, on_epoch=curves)
        classifier.save(paths.CONVNEXT, history.best_state, replace(config, **asdict(settings.resize)))
        curves.write(history, paths.CONVNEXT_CURVES, paths.CONVNEXT_SPEED)
        run.log_metrics({"best_epoch": history.best_epoch})
        run.log_artifact(paths.CONVNEXT_CURVES, "curves")


if __name__ == "__main__":
    pipeline.run(main)
