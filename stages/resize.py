"""Resize every image of the split to the input size of each model."""

from dfganext import paths, pipeline
from dfganext.data import arrays, split
from dfganext.settings import load_settings
from dfganext.tracking import runs


def main() -> None:
    settings = load_settings()
    with runs.stage_run("resize", settings, reads=[paths.SPLIT], makes=[paths.IMAGES]) as run:
        sample = split.read(paths.SPLIT)
        for size in sorted({settings.convnext.size, settings.autoencoder.size}):
            arrays.write(sample, paths.RAW, paths.images_of_size(size), size, settings.resize, settings.machine.workers)
        run.log_metrics({"images": len(sample)})


if __name__ == "__main__":
    pipeline.run(main)
