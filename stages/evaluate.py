"""Settle thresholds on validation images, then judge both models on the test images, once."""

import pandas as pd

from dfganext import figures, files, labels, paths, pipeline, settings, tracking
from dfganext.data import arrays, sampling
from dfganext.detector import Detector
from dfganext.evaluation import evaluate, metrics
from dfganext.models import autoencoder
from dfganext.training import compute


def main() -> None:
    chosen = settings.load()
    device = compute.device(chosen.machine.device)
    reads = [paths.SPLIT, paths.CONVNEXT, paths.AUTOENCODER]
    with tracking.stage_run("evaluate", chosen, reads=reads, makes=[paths.OPERATING_POINT, paths.PREDICTIONS]) as run:
        compute.make_repeatable()
        detector = Detector.load(paths.CONVNEXT, device=device)
        images = paths.images_of_size(chosen.convnext.size)
        validation, test = (arrays.read(images, split) for split in (sampling.VALIDATION, sampling.TEST))
        p_fake = detector.probabilities(test.pixels)
        convnext = evaluate.judge_classifier(
            validation.labels, detector.probabilities(validation.pixels), test.labels, p_fake
        )

        model = autoencoder.load(paths.AUTOENCODER)
        images = paths.images_of_size(chosen.autoencoder.size)
        (_, validation_errors), (_, errors) = (
            autoencoder.describe(model, arrays.read(images, split).pixels, device=device)
            for split in (sampling.VALIDATION, sampling.TEST)
        )
        reconstruction = evaluate.judge_autoencoder(
            validation.labels, validation_errors, test.labels, errors, chosen.autoencoder.threshold
        )

        predictions = pd.DataFrame(
            {
                "path": test.paths,
                "label": [labels.NAMES[label] for label in test.labels],
                "predicted": [labels.NAMES[int(p > convnext["threshold"])] for p in p_fake],
                "p_fake": p_fake,
                "reconstruction_error": errors,
            }
        )
        roc, precision_recall = (
            metrics.roc_curve(test.labels, p_fake),
            metrics.precision_recall_curve(test.labels, p_fake),
        )
        title = f"{chosen.convnext.architecture}, {len(p_fake)} test images, accuracy {convnext['accuracy']:.4f}"
        files.write_json(paths.OPERATING_POINT, {"threshold": convnext["threshold"], "chosen_on": sampling.VALIDATION})
        scores = {"convnext": convnext, "autoencoder": reconstruction}
        files.write_json(paths.EVALUATE_METRICS, scores)
        for table, path in (
            (predictions, paths.PREDICTIONS),
            (predictions[["label", "predicted"]], paths.CONFUSION),
            (roc, paths.ROC),
            (precision_recall, paths.PRECISION_RECALL),
        ):
            files.write_table(path, table)
        figures.save(figures.evaluation(roc, precision_recall, convnext, title), paths.EVALUATION_FIGURE)

        run.log_headline(evaluate.headline(scores))
        for path in (
            paths.EVALUATION,
            paths.EVALUATE_METRICS,
            paths.ROC,
            paths.PRECISION_RECALL,
            paths.EVALUATION_FIGURE,
        ):
            run.log_artifact(path, "evaluation")
        print(
            f"ConvNeXt: accuracy {convnext['accuracy']:.4f}, F1 {convnext['f1']:.4f}, ROC-AUC {convnext['roc_auc']:.4f}"
        )
        print(f"Autoencoder: accuracy {reconstruction['accuracy']:.4f}, ROC-AUC {reconstruction['roc_auc']:.4f}")


if __name__ == "__main__":
    pipeline.run(main)
