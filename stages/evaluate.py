"""Choose temperature and thresholds on the validation split, then evaluate both models on the test split, once."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from dfganext import files, paths, pipeline
from dfganext.data import arrays
from dfganext.data.split import SPLITS, TEST, VALIDATION
from dfganext.evaluation import calibration, evaluate, metrics
from dfganext.evaluation.evaluate import Results
from dfganext.models import autoencoder, classifier, folder
from dfganext.models.novelty import MAX_IMAGES, Neighbours
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
        neighbours, on_validation, on_test = apply_convnext(settings.convnext.size, device)
        test = on_test.images
        convnext = evaluate.evaluate_classifier(
            on_validation.images.labels, on_validation.logits, test.labels, on_test.logits, on_test.argmax, test.groups
        )
        threshold, temperature = convnext["threshold"], convnext["temperature"]
        rule, decisions, convnext["decisions"] = evaluate.evaluate_decisions(
            on_validation, on_test, threshold, temperature, settings.operating_point
        )
        scores = {"convnext": convnext}
        scores["autoencoder"], errors = evaluate_autoencoder(settings.autoencoder, device)
        p_fake = calibration.apply(on_test.logits, temperature)
        predictions = evaluate.predictions(on_test, p_fake, threshold, decisions, errors)
        roc = metrics.roc_curve(test.labels, p_fake)
        precision_recall = metrics.precision_recall_curve(test.labels, p_fake)

        operating_point = {"threshold": threshold, "temperature": temperature, "chosen_on": VALIDATION}
        files.write_json(paths.OPERATING_POINT, {**operating_point, "decision": asdict(rule)}, files.EXACT)
        neighbours.save(paths.EVALUATION / folder.FEATURES_FILE)
        files.write_json(paths.EVALUATE_METRICS, scores)
        files.write_table(paths.PREDICTIONS, predictions)
        files.write_table(paths.RELIABILITY, evaluate.reliability(test.labels, on_test.logits, temperature))
        files.write_table(paths.CONFUSION, predictions[["label", "predicted"]])
        files.write_table(paths.ROC, roc)
        files.write_table(paths.PRECISION_RECALL, precision_recall)
        figure = figures.evaluation(roc, precision_recall, predictions, settings.convnext.architecture)
        figures.save(figure, paths.EVALUATION_FIGURE)

        run.set_tags(lineage.provenance())
        run.log_key_metrics(evaluate.key_metrics(scores))
        run.log_metrics(evaluate.decision_metrics(scores))
        for path in (paths.EVALUATION, paths.EVALUATE_METRICS, paths.ROC, paths.PRECISION_RECALL):
            run.log_artifact(path, "evaluation")
        run.log_artifact(paths.EVALUATION_FIGURE, "evaluation")
        for name, row in scores.items():
            low, high = row["intervals"]["roc_auc"]
            print(
                f"{name}: accuracy {row['accuracy']:.4f}, F1 {row['f1']:.4f}, ROC AUC {row['roc_auc']:.4f} ({low:.3f} to {high:.3f})"
            )


def apply_convnext(size: int, device: torch.device) -> tuple[Neighbours, Results, Results]:
    """The features of training images, and the classifier's results for the validation and test images."""
    model, config = classifier.load(paths.CONVNEXT)
    train, *others = (arrays.read(paths.images_of_size(size), split) for split in SPLITS)
    step = math.ceil(len(train.pixels) / MAX_IMAGES)
    neighbours = Neighbours.of(classifier.predict(model, config, train.pixels[::step], device=device).features)
    results = []
    for images in others:
        outputs, features = classifier.predict(model, config, images.pixels, device=device)
        logits = classifier.fake_logits(outputs).astype(float)
        results.append(Results(images, logits, outputs.argmax(axis=1), neighbours.novelty(features)))
    on_validation, on_test = results
    return neighbours, on_validation, on_test


def evaluate_autoencoder(settings: Autoencoder, device: torch.device) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics, and the reconstruction error of each test image (n,)."""
    model = autoencoder.load(paths.AUTOENCODER)
    validation, test = (arrays.read(paths.images_of_size(settings.size), one) for one in (VALIDATION, TEST))
    validation_errors, errors = (
        autoencoder.reconstruction_errors(model, images.pixels, device=device) for images in (validation, test)
    )
    scores = evaluate.evaluate_autoencoder(
        validation.labels, validation_errors, test.labels, errors, settings.threshold, test.groups
    )
    return scores, errors


if __name__ == "__main__":
    pipeline.run(main)
