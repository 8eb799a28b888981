"""Register the trained model; it becomes champion if it beats the current champion on the validation images."""

import json
from typing import Any

import pandas as pd

from dfganext import files, paths, pipeline
from dfganext.data import split
from dfganext.evaluation import evaluate
from dfganext.report import card
from dfganext.settings import Settings, load_settings
from dfganext.tracking import promotion, registry, runs
from dfganext.tracking.comparison import Data
from dfganext.training import compute

MODEL = paths.CONVNEXT
READS = [paths.SPLIT, MODEL, paths.OPERATING_POINT, paths.EVALUATE_METRICS, paths.ROBUSTNESS, paths.EXTERNAL_METRICS]


def main() -> None:
    settings = load_settings()
    pipeline.require(READS)
    with runs.stage_run("promote", settings, reads=READS) as run:
        scores = json.loads(paths.EVALUATE_METRICS.read_text(encoding="utf-8"))
        data = Data.read(paths.SPLIT, paths.MANIFEST, paths.RAW, settings.subsample.near_duplicate_bits)
        trained_by = run.makers.get(MODEL.as_posix(), run.id)
        tags = {f"test.{name}": f"{scores['convnext'][name]:.6f}" for name in ("accuracy", "roc_auc")}
        device = compute.device(settings.machine.device)
        promoted = promotion.promote(MODEL, paths.OPERATING_POINT, data, settings.promote, trained_by, tags, device)
        run.set_key_tags(
            {"promotion": promoted.outcome, "promotion.reason": promoted.reason, "version": promoted.version}
        )
        facts = facts_of(promoted, settings, scores["convnext"], trained_by)
        whole = card.render(facts)
        registry.attach_card(promoted.version, whole, card.description(whole, registry.DESCRIPTION_CHARACTERS))
        candidate = {"model": files.sha256_of(MODEL), "operating_point": files.sha256_of(paths.OPERATING_POINT)}
        files.write_json(paths.CANDIDATE, {**candidate, "metric": promoted.metric, "score": promoted.score})
        run.log_metrics({f"validation_{promoted.metric}": promoted.score})
        run.log_key_metrics(evaluate.key_metrics(scores))
        print(f"version {promoted.version} {promoted.outcome}: {promoted.reason}")


def facts_of(promoted: promotion.Promotion, settings: Settings, scores: dict[str, Any], run_id: str) -> card.Facts:
    """What the model card says: the settings and measurements of this workspace."""
    table = split.read(paths.SPLIT)
    return card.Facts(
        version=promoted.version,
        settings=settings,
        split=table,
        split_sha256=files.sha256_of(paths.SPLIT),
        sample=split.is_from(table, paths.SAMPLES),
        scores=scores,
        robustness=pd.read_csv(paths.ROBUSTNESS),
        external=json.loads(paths.EXTERNAL_METRICS.read_text(encoding="utf-8")),
        promotion=promoted.reason,
        run_id=run_id,
        commit=runs.commit_of(run_id),
    )


if __name__ == "__main__":
    pipeline.run(main)
