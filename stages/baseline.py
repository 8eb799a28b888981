"""Baseline: a logistic regression on the images' spectra, evaluated on the same test images."""

import pandas as pd

from dfganext import files, paths, pipeline
from dfganext.data import arrays
from dfganext.data.split import SPLITS
from dfganext.evaluation import evaluate, spectrum
from dfganext.labels import NAMES
from dfganext.settings import load_settings
from dfganext.tracking import runs


def main() -> None:
    settings = load_settings()
    folder = paths.images_of_size(settings.convnext.size)
    with runs.stage_run("baseline", settings, reads=[paths.SPLIT, folder], makes=[paths.BASELINE]) as run:
        train, validation, test = (arrays.read(folder, split) for split in SPLITS)
        train_x, validation_x, test_x = (spectrum.features(part.pixels) for part in (train, validation, test))
        model = spectrum.fit(train_x, train.labels, validation_x, validation.labels, settings.seed)
        validation_p, p_fake = model.probabilities(validation_x), model.probabilities(test_x)
        scores = evaluate.evaluate_probabilities(validation.labels, validation_p, test.labels, p_fake, test.groups)
        scores = {**scores, "C": model.C}

        labels = [NAMES[label] for label in test.labels]
        table = pd.DataFrame({"path": test.paths, "label": labels, "group": test.groups, "p_fake": p_fake})
        files.write_table(paths.BASELINE / "predictions.csv", table)
        files.write_json(paths.BASELINE_METRICS, scores)
        run.log_metrics({name: scores[name] for name in evaluate.KEY_METRICS})
        for path in (paths.BASELINE, paths.BASELINE_METRICS):
            run.log_artifact(path, "baseline")
        print(f"spectrum: accuracy {scores['accuracy']:.4f}, ROC AUC {scores['roc_auc']:.4f}")


if __name__ == "__main__":
    pipeline.run(main)
