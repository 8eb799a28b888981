"""Compute Grad-CAM maps of every test image for both classes, and measure them."""

import numpy as np
import pandas as pd
import torch

from dfganext import files, labels, paths, pipeline
from dfganext.data import arrays
from dfganext.data.split import TEST
from dfganext.explain import gradcam, measure, statistics
from dfganext.models import classifier
from dfganext.report import figures
from dfganext.settings import load_settings
from dfganext.tracking import runs
from dfganext.training import compute

FIGURES = (paths.GRADCAM_REAL_FIGURE, paths.GRADCAM_FAKE_FIGURE)


def main() -> None:
    settings = load_settings()
    reads = [paths.SPLIT, paths.CONVNEXT, paths.PREDICTIONS]
    with runs.stage_run("gradcam", settings, reads=reads, makes=[paths.GRADCAM]) as run:
        compute.make_repeatable()
        model, config = classifier.load(paths.CONVNEXT)
        model = model.to(compute.device(settings.machine.device)).to(memory_format=torch.channels_last)
        test = arrays.read(paths.images_of_size(settings.convnext.size), TEST)
        evaluated = pd.read_csv(paths.PREDICTIONS, dtype={"path": str}).set_index("path").loc[list(test.paths)]
        p_fake, predicted = evaluated["p_fake"].to_numpy(), evaluated["predicted"].map(labels.index_of).to_numpy()
        maps = gradcam.maps_of_both(model, config, test.pixels)
        rng = np.random.default_rng(settings.seed)
        order = [rng.permutation(test.only(label)) for label in labels.ALL]
        tables = measure.tables(model, config, test, maps, predicted, order, settings.gradcam, settings.seed)

        for name, table in tables.items():
            files.write_table(paths.GRADCAM / f"{name}.csv", table)
            run.log_artifact(paths.GRADCAM / f"{name}.csv", "gradcam")
        for label, raw in zip(labels.NAMES, maps, strict=True):
            np.save(paths.GRADCAM / f"maps_{label}.npy", raw)
        means = statistics.means(tables["statistics"])
        files.write_json(paths.GRADCAM_METRICS, means)
        for target, classes in means.items():
            for label, row in classes.items():
                named = {f"{label}_for_{target}_{name}": value for name, value in row.items() if value is not None}
                run.log_metrics(named)

        target = settings.gradcam.target
        targets = predicted if target == "predicted" else np.full(len(predicted), labels.index_of(target))
        raw = maps[targets, np.arange(len(targets))]
        drawn = [np.sort(rows[: settings.gradcam.per_class]) for rows in order]
        top = float(raw[np.concatenate(drawn)].max()) or 1.0
        for name, rows, path in zip(labels.NAMES, drawn, FIGURES, strict=True):
            captions = [f"{labels.NAMES[predicted[row]]}, p_fake {p_fake[row]:.3f}" for row in rows]
            title = f"Random {name} test images; evidence for class “{target}”"
            overlays = [
                gradcam.overlay(image, one, top) for image, one in zip(test.pixels[rows], raw[rows], strict=True)
            ]
            figures.save(figures.gradcam(test.pixels[rows], overlays, captions, title, top), path)
            run.log_artifact(path, "gradcam")


if __name__ == "__main__":
    pipeline.run(main)
