"""Choose temperature and thresholds on the validation split, then evaluate both models on the test split, once."""

from typing import Any

import numpy as np
import torch

from dfganext import files, paths, pipeline
from dfganext.data import arrays
from dfganext.data.arrays import Images
from dfganext.data.split import TEST, VALIDATION
from dfganext.evaluation import calibration, evaluate, metrics
from dfganext.models import autoencoder, classifier
from dfganext.report import figures
from dfganext.settings import Autoencoder, load_settings
from dfganext.tracking import lineage, runs
from dfganext.training import compute


def main() -> None:
    settings = load_settings()
    device = compute.device(settings.machine.device)
    reads = [paths.SPLIT, paths.CONVNEXT, paths.AUTOENCODER]
    with runs.stage_run("evaluate", settings, reads=reads, makes=[paths.OPERATING_POINT, paths.PREDICTIONS]) as run:
        compute.make_repeatable()
        validation, test = read_splits(settings.convnext.size)
        convnext, logits, argmax = evaluate_convnext(validation, test, device)
        scores = {"convnext": convnext}
        scores["autoencoder"], errors = evaluate_autoencoder(settings.autoencoder, device)
        threshold, temperature = convnext["threshold"], convnext["temperature"]
        p_fake = calibration.apply(logits, temperature)
        predictions = evaluate.predictions(test, logits, p_fake, threshold, argmax, errors)
        roc = metrics.roc_curve(test.labels, p_fake)
        precision_recall = metrics.precision_recall_curve(test.labels, p_fake)

        operating_point = {"threshold": threshold, "temperature": temperature, "chosen_on": VALIDATION}
        files.write_json(paths.OPERATING_POINT, operating_point, files.EXACT)
        files.write_json(paths.EVALUATE_METRICS, scores)
        files.write_table(paths.PREDICTIONS, predictions)
        files.write_table(paths.RELIABILITY, evaluate.reliability(test.labels, logits, temperature))
        files.write_table(paths.CONFUSION, predictions[["label", "predicted"]])
        files.write_table(paths.ROC, roc)
        files.write_table(paths.PRECISION_RECALL, precision_recall)
        figure = figures.evaluation(roc, precision_recall, predictions, settings.convnext.architecture)
        figures.save(figure, paths.EVALUATION_FIGURE)

        run.set_tags(lineage.provenance())
        run.log_key_metrics(evaluate.key_metrics(scores))
        for path in (paths.EVALUATION, paths.EVALUATE_METRICS, paths.ROC, paths.PRECISION_RECALL):
            run.log_artifact(path, "evaluation")
        run.log_artifact(paths.EVALUATION_FIGURE, "evaluation")
        for name, row in scores.items():
            print(f"{name}: accuracy {row['accuracy']:.4f}, F1 {row['f1']:.4f}, ROC AUC {row['roc_auc']:.4f}")


def read_splits(size: int) -> list[Images]:
    """The validation and test images of this size."""
    return [arrays.read(paths.images_of_size(size), split) for split in (VALIDATION, TEST)]


def evaluate_convnext(
    validation: Images, test: Images, device: torch.device
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Metrics, and for each test image its logit of "fake" and the class with the larger output, each (n,)."""
    model, config = classifier.load(paths.CONVNEXT)
    validation_logits = classifier.predict_logits(model, config, validation.pixels, device=device)
    outputs = classifier.predict_outputs(model, config, test.pixels, device=device)
    logits, argmax = classifier.fake_logits(outputs).astype(float), outputs.argmax(axis=1)
    scores = evaluate.evaluate_classifier(
        validation.labels, validation_logits, test.labels, logits, argmax, test.groups
    )
    return scores, logits, argmax


def evaluate_autoencoder(settings: Autoencoder, device: torch.device) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics, and the reconstruction error of each test image (n,)."""
    model = autoencoder.load(paths.AUTOENCODER)
    validation, test = read_splits(settings.size)
    validation_errors, errors = (
        autoencoder.reconstruction_errors(model, images.pixels, device=device) for images in (validation, test)
    )
    scores = evaluate.evaluate_autoencoder(
        validation.labels, validation_errors, test.labels, errors, settings.threshold, test.groups
    )
    return scores, errors


if __name__ == "__main__":
    pipeline.run(main)
