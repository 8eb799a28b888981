"""Estimate the density of the autoencoder's latent space at real and at fake images."""

from dfganext import files, labels, paths, pipeline
from dfganext.data import arrays
from dfganext.data.split import TEST, TRAIN
from dfganext.density import protocols
from dfganext.models import autoencoder
from dfganext.report import figures
from dfganext.settings import load_settings
from dfganext.tracking import runs
from dfganext.training import compute

DIGITS = 10
"""Significant digits of a log density in nats: Table II compares to 1e-5 values of about 11,000."""


def main() -> None:
    settings = load_settings()
    with runs.stage_run("density", settings, reads=[paths.SPLIT, paths.AUTOENCODER], makes=[paths.DENSITY]) as run:
        compute.make_repeatable()
        device = compute.device(settings.machine.device)
        model = autoencoder.load(paths.AUTOENCODER)
        images = paths.images_of_size(settings.autoencoder.size)
        train, test = (arrays.read(images, split) for split in (TRAIN, TEST))
        train_real, heldout_real, heldout_fake = (
            autoencoder.encode(model, part.pixels[part.only(label)], device=device)
            for part, label in ((train, labels.REAL), (test, labels.REAL), (test, labels.FAKE))
        )
        scores = protocols.score(train_real, heldout_real, heldout_fake, settings.density.bandwidth)
        scores = protocols.identify(scores, train, test)
        points, dimension = train_real.shape
        summary = protocols.summarise(scores, points, dimension, settings.density.bandwidth)

        files.write_table(paths.DENSITY / "scores.csv", scores, DIGITS)
        files.write_json(paths.DENSITY_METRICS, summary, DIGITS)
        by_class = scores[scores.protocol == "heldout"].groupby("label").log_density
        title = f"Latent density, {dimension} dimensions, bandwidth {settings.density.bandwidth:g}"
        figure = figures.density(by_class.get_group("real").to_numpy(), by_class.get_group("fake").to_numpy(), title)
        figures.save(figure, paths.DENSITY_FIGURE)
        means = {f"heldout_{label}_mean": values.mean() for label, values in by_class}
        run.log_metrics({**means, "heldout_roc_auc": summary["heldout"]["roc_auc"]})
        for path in (paths.DENSITY_FIGURE, paths.DENSITY_METRICS):
            run.log_artifact(path, "density")


if __name__ == "__main__":
    pipeline.run(main)
