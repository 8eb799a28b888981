"""Train the classifier, with one process or several, and keep its best epoch."""

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
    distributed.run(partial(train, settings), settings.convnext.processes, settings.machine.device)


def train(settings: Settings, group: distributed.Group) -> None:
    """Train as one process of a group; only the main process writes and logs."""
    images = paths.images_of_size(settings.convnext.size)
    training_split, validation = (arrays.read(images, split) for split in (sampling.TRAIN, sampling.VALIDATION))
    machine, precision = compute.resolve(settings.machine, settings.convnext.precision)
    convnext = replace(settings.convnext, precision=precision)
    arguments = (training_split, validation, convnext, settings.loss, settings.seed, machine)
    inputs = training.training_inputs(*arguments)
    group.check_same(inputs)
    if not group.is_main:
        training.train(*arguments, group=group)
        return
    reads = [paths.SPLIT, images, paths.WEIGHTS, paths.TEACHER]
    with (
        checkpoints.resumable("train_convnext", inputs) as checkpoint,
        runs.stage_run("train_convnext", settings, reads=reads, makes=[paths.CONVNEXT]) as run,
    ):
        run.set_tags({"processes": group.world_size, "precision": precision, "device": machine.device})
        curves = Curves(run.log_metrics, settings.convnext.epochs)
        history, config = training.train(*arguments, checkpoint, curves, group)
        classifier.save(paths.CONVNEXT, history.best_state, replace(config, **asdict(settings.resize)))
        curves.write(history, paths.CONVNEXT_CURVES, paths.CONVNEXT_SPEED)
        run.log_metrics({"best_epoch": history.best_epoch})
        run.log_artifact(paths.CONVNEXT_CURVES, "curves")


if __name__ == "__main__":
    pipeline.run(main)
