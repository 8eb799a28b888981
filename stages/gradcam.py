"""Map where the classifier finds its evidence, on every test image; draw some of each class."""

import numpy as np
import pandas as pd

from dfganext import figures, files, labels, paths, pipeline, settings, tracking
from dfganext.data import arrays, sampling
from dfganext.detector import Detector
from dfganext.explain import gradcam, statistics
from dfganext.training import compute

FIGURES = (paths.GRADCAM_REAL_FIGURE, paths.GRADCAM_FAKE_FIGURE)


def main() -> None:
    chosen = settings.load()
    with tracking.stage_run("gradcam", chosen, reads=[paths.SPLIT, paths.CONVNEXT], makes=[paths.GRADCAM]) as run:
        compute.make_repeatable()
        detector = Detector.load(paths.CONVNEXT, paths.OPERATING_POINT, compute.device(chosen.machine.device))
        test = arrays.read(paths.images_of_size(chosen.convnext.size), sampling.TEST)
        p_fake = detector.probabilities(test.pixels)
        targets = {
            "fake": np.full(len(p_fake), labels.FAKE),
            "real": np.full(len(p_fake), labels.REAL),
            "predicted": (p_fake > detector.threshold).astype(int),
        }[chosen.gradcam.target]
        maps = gradcam.raw_maps(detector.model, detector.config, test.pixels, targets)

        names = np.array(labels.NAMES)
        table = pd.DataFrame({"path": test.paths, "label": names[test.labels], "target": names[targets]})
        table = pd.concat([table, statistics.describe(maps)], axis=1)
        files.write_table(paths.GRADCAM / "statistics.csv", table)
        np.save(paths.GRADCAM / "maps.npy", maps)
        means = statistics.class_means(table)
        files.write_json(paths.GRADCAM_METRICS, means)

        rng = np.random.default_rng(chosen.seed)
        drawn = [np.sort(rng.permutation(test.only(label))[: chosen.gradcam.per_class]) for label in labels.ALL]
        top = float(maps[np.concatenate(drawn)].max()) or 1.0
        for code, rows, path in zip(labels.ALL, drawn, FIGURES, strict=True):
            captions = [f"{names[int(p > detector.threshold)]}, p_fake {p:.3f}" for p in p_fake[rows]]
            title = f"Random {names[code]} test images; evidence for class “{chosen.gradcam.target}”"
            figures.save(figures.gradcam(test.pixels[rows], maps[rows], captions, title, top), path)
            run.log_artifact(path, "gradcam")
        run.log_artifact(paths.GRADCAM / "statistics.csv", "gradcam")
        for label, row in means.items():
            run.log_metrics({f"{label}_{name}": value for name, value in row.items() if value is not None})


if __name__ == "__main__":
    pipeline.run(main)
