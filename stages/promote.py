"""Register the trained model; it becomes champion if it beats the present one on the validation images."""

import json

from dfganext import files, paths, pipeline, settings
from dfganext.evaluation import evaluate
from dfganext.tracking import promotion
from dfganext.tracking import runs as tracking

MODEL = paths.CONVNEXT


def main() -> None:
    chosen = settings.load()
    reads = [paths.SPLIT, MODEL, paths.OPERATING_POINT, paths.EVALUATE_METRICS]
    with tracking.stage_run("promote", chosen, reads=reads) as run:
        scores = json.loads(paths.EVALUATE_METRICS.read_text(encoding="utf-8"))
        data = promotion.Data.read(paths.SPLIT, paths.MANIFEST, paths.RAW, chosen.subsample.near_duplicate_bits)
        promoted = promotion.promote(
            MODEL,
            paths.OPERATING_POINT,
            data,
            chosen.promote,
            run_id=run.makers.get(MODEL.as_posix(), run.id),
            tags={"test.accuracy": f"{scores['convnext']['accuracy']:.6f}"},
        )
        run.set_tags({"promotion": promoted.outcome, "promotion.reason": promoted.reason, "version": promoted.version})
        files.write_json(
            paths.CANDIDATE,
            {
                "model": tracking.sha256_of(MODEL),
                "operating_point": tracking.sha256_of(paths.OPERATING_POINT),
                "metric": promoted.metric,
                "score": promoted.score,
            },
        )
        run.log_metrics({f"validation_{promoted.metric}": promoted.score})
        run.log_headline(evaluate.headline(scores))
        print(f"version {promoted.version} {promoted.outcome}: {promoted.reason}")


if __name__ == "__main__":
    pipeline.run(main)
