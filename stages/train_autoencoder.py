"""Train the autoencoder on real images and keep its best epoch."""

from dfganext import paths, pipeline
from dfganext.data import arrays
from dfganext.data import split as sampling
from dfganext.models import autoencoder
from dfganext.settings import load_settings
from dfganext.tracking import runs
from dfganext.training import autoencoder as training
from dfganext.training import checkpoints, compute
from dfganext.training.curves import Curves


def main() -> None:
    settings = load_settings()
    images = paths.images_of_size(settings.autoencoder.size)
    train, validation = (arrays.read(images, split) for split in (sampling.TRAIN, sampling.VALIDATION))
    machine, precision = compute.resolve(settings.machine, "float32")
    arguments = (train, validation, settings.autoencoder, settings.seed, machine)
    with (
        checkpoints.resumable("train_autoencoder", training.training_inputs(*arguments)) as checkpoint,
        runs.stage_run("train_autoencoder", settings, reads=[paths.SPLIT, images], makes=[paths.AUTOENCODER]) as run,
    ):
        run.set_tags({"precision": precision, "device": machine.device})
        curves = Curves(run.log_metrics, settings.autoencoder.epochs)
        history = training.train(*arguments, checkpoint, curves)
        autoencoder.save(paths.AUTOENCODER, history.best_state)
        curves.write(history, paths.AUTOENCODER_CURVES, paths.AUTOENCODER_SPEED)
        run.log_metrics({"best_epoch": history.best_epoch})
        run.log_artifact(paths.AUTOENCODER_CURVES, "curves")


if __name__ == "__main__":
    pipeline.run(main)
