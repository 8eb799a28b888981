"""Map where the classifier finds its evidence on every test image, for both classes, and measure the maps."""

from dataclasses import asdict

import numpy as np
import pandas as pd

from dfganext import figures, files, labels, paths, pipeline, settings, tracking
from dfganext.data import arrays, sampling
from dfganext.detector import Detector
from dfganext.explain import comparison, faithfulness, gradcam, sanity, statistics
from dfganext.training import compute

FIGURES = (paths.GRADCAM_REAL_FIGURE, paths.GRADCAM_FAKE_FIGURE)
NAMES = np.array(labels.NAMES)


def main() -> None:
    chosen = settings.load()
    with tracking.stage_run("gradcam", chosen, reads=[paths.SPLIT, paths.CONVNEXT], makes=[paths.GRADCAM]) as run:
        compute.make_repeatable()
        detector = Detector.load(paths.CONVNEXT, paths.OPERATING_POINT, compute.device(chosen.machine.device))
        test = arrays.read(paths.images_of_size(chosen.convnext.size), sampling.TEST)
        p_fake = detector.probabilities(test.pixels)
        called = (p_fake > detector.threshold).astype(int)
        maps = {label: maps_for(detector, test.pixels, label) for label in labels.ALL}
        rng = np.random.default_rng(chosen.seed)
        order = {label: rng.permutation(test.only(label)) for label in labels.ALL}

        face = statistics.Ellipse(**asdict(chosen.gradcam.face))
        table = pd.concat([described(test, label, maps[label], face) for label in labels.ALL], ignore_index=True)
        tested = np.sort(np.concatenate([rows[: chosen.gradcam.faithfulness] for rows in order.values()]))
        own = chosen_maps(maps, called)[tested]
        areas, curves = faithfulness.curves(
            detector.model, detector.config, test.pixels[tested], own, called[tested], seed=chosen.seed
        )
        similar = randomised(detector, test.pixels[tested], called[tested], own, chosen.seed)
        tables = {
            "statistics": table,
            "comparison": comparison.compare(table),
            "faithfulness": faithfulness.against(areas),
            "faithfulness_curves": curves,
            "sanity": similar,
        }
        for name, one in tables.items():
            files.write_table(paths.GRADCAM / f"{name}.csv", one)
            run.log_artifact(paths.GRADCAM / f"{name}.csv", "gradcam")
        for label, raw in maps.items():
            np.save(paths.GRADCAM / f"maps_{labels.NAMES[label]}.npy", raw)
        means = {name: statistics.class_means(table[table.target == name]) for name in labels.NAMES}
        files.write_json(paths.GRADCAM_METRICS, means)
        for mapped, classes in means.items():
            for name, row in classes.items():
                run.log_metrics(
                    {f"{name}_for_{mapped}_{key}": value for key, value in row.items() if value is not None}
                )

        target = chosen.gradcam.target
        raw = chosen_maps(maps, called if target == "predicted" else np.full(len(called), labels.index_of(target)))
        drawn = [np.sort(order[label][: chosen.gradcam.per_class]) for label in labels.ALL]
        top = float(raw[np.concatenate(drawn)].max()) or 1.0
        for label, rows, path in zip(labels.ALL, drawn, FIGURES, strict=True):
            captions = [f"{NAMES[call]}, p_fake {p:.3f}" for call, p in zip(called[rows], p_fake[rows], strict=True)]
            title = f"Random {NAMES[label]} test images; evidence for class “{target}”"
            figures.save(figures.gradcam(test.pixels[rows], raw[rows], captions, title, top), path)
            run.log_artifact(path, "gradcam")


def maps_for(detector: Detector, pixels: np.ndarray, label: int) -> np.ndarray:
    return gradcam.raw_maps(detector.model, detector.config, pixels, np.full(len(pixels), label))


def chosen_maps(maps: dict[int, np.ndarray], targets: np.ndarray) -> np.ndarray:
    """Of each image the map for its target."""
    return np.where(targets[:, None, None] == labels.FAKE, maps[labels.FAKE], maps[labels.REAL])


def described(test: arrays.Images, target: int, maps: np.ndarray, face: statistics.Ellipse) -> pd.DataFrame:
    rows = pd.DataFrame({"path": test.paths, "label": NAMES[test.labels], "target": labels.NAMES[target]})
    return pd.concat([rows, statistics.describe(maps, face)], axis=1)


def randomised(
    detector: Detector, pixels: np.ndarray, targets: np.ndarray, maps: np.ndarray, seed: int
) -> pd.DataFrame:
    """How like their former selves the maps stay when weights are drawn anew: columns depth, image, similarity."""
    parts = []
    for depth in ("head", "all"):
        other = sanity.randomise(detector.model, seed, depth)
        again = gradcam.raw_maps(other, detector.config, pixels, targets)
        similarity = sanity.similarity(maps, again)
        parts.append(pd.DataFrame({"depth": depth, "image": range(len(maps)), "similarity": similarity}))
    return pd.concat(parts, ignore_index=True)


if __name__ == "__main__":
    pipeline.run(main)
