"""Register the trained model; it becomes champion if it beats the present one on the validation images."""

import json

from dfganext import files, paths, pipeline, registry, settings, tracking
from dfganext.evaluation import evaluate

MODEL = paths.CONVNEXT


def main() -> None:
    chosen = settings.load()
    reads = [paths.SPLIT, MODEL, paths.OPERATING_POINT, paths.EVALUATE_METRICS]
    with tracking.stage_run("promote", chosen, reads=reads) as run:
        scores = json.loads(paths.EVALUATE_METRICS.read_text(encoding="utf-8"))
        promotion = registry.promote(
            MODEL,
            paths.OPERATING_POINT,
            paths.SPLIT,
            paths.RAW,
            chosen.promote,
            run_id=run.makers.get(MODEL.as_posix(), run.id),
            tags={
                "dataset.sha256": tracking.sha256_of(paths.SPLIT),
                "test.accuracy": f"{scores['convnext']['accuracy']:.6f}",
            },
        )
        run.set_tags(
            {"promotion": promotion.outcome, "promotion.reason": promotion.reason, "version": promotion.version}
        )
        files.write_json(
            paths.CANDIDATE,
            {
                "model": tracking.sha256_of(MODEL),
                "operating_point": tracking.sha256_of(paths.OPERATING_POINT),
                "metric": promotion.metric,
                "score": promotion.score,
            },
        )
        run.log_metrics({f"validation_{promotion.metric}": promotion.score})
        run.log_headline(evaluate.headline(scores))
        print(f"version {promotion.version} {promotion.outcome}: {promotion.reason}")


if __name__ == "__main__":
    pipeline.run(main)
