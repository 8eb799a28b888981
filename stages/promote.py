"""Register the trained model; it becomes champion if it beats the current champion on the validation images."""

import json

from dfganext import files, paths, pipeline
from dfganext.evaluation import evaluate
from dfganext.settings import load_settings
from dfganext.tracking import promotion, runs
from dfganext.tracking.comparison import Data

MODEL = paths.CONVNEXT


def main() -> None:
    settings = load_settings()
    reads = [paths.SPLIT, MODEL, paths.OPERATING_POINT, paths.EVALUATE_METRICS]
    with runs.stage_run("promote", settings, reads=reads) as run:
        scores = json.loads(paths.EVALUATE_METRICS.read_text(encoding="utf-8"))
        data = Data.read(paths.SPLIT, paths.MANIFEST, paths.RAW, settings.subsample.near_duplicate_bits)
        trained_by = run.makers.get(MODEL.as_posix(), run.id)
        tags = {"test.accuracy": f"{scores['convnext']['accuracy']:.6f}"}
        promoted = promotion.promote(MODEL, paths.OPERATING_POINT, data, settings.promote, trained_by, tags)
        run.set_tags({"promotion": promoted.outcome, "promotion.reason": promoted.reason, "version": promoted.version})
        candidate = {"model": files.sha256_of(MODEL), "operating_point": files.sha256_of(paths.OPERATING_POINT)}
        files.write_json(paths.CANDIDATE, {**candidate, "metric": promoted.metric, "score": promoted.score})
        run.log_metrics({f"validation_{promoted.metric}": promoted.score})
        run.log_key_metrics(evaluate.key_metrics(scores))
        print(f"version {promoted.version} {promoted.outcome}: {promoted.reason}")


if __name__ == "__main__":
    pipeline.run(main)
