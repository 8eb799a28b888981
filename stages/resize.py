"""Bring every image of the split to each size a model asks for."""

from dfganext import paths, pipeline, settings
from dfganext.data import arrays
from dfganext.data import split as sampling
from dfganext.tracking import runs as tracking


def main() -> None:
    chosen = settings.load()
    with tracking.stage_run("resize", chosen, reads=[paths.SPLIT], makes=[paths.IMAGES]) as run:
        split = sampling.read(paths.SPLIT)
        for size in sorted({chosen.convnext.size, chosen.autoencoder.size}):
            arrays.write(split, paths.RAW, paths.images_of_size(size), size, chosen.resize, chosen.machine.workers)
        run.log_metrics({"images": len(split)})


if __name__ == "__main__":
    pipeline.run(main)
