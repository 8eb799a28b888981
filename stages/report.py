"""One page with every table, figure and verdict: from the results in the workspace, and from other experiments on record."""

from dfganext import paths, pipeline, settings
from dfganext.evaluation import evaluate
from dfganext.report import evidence, page
from dfganext.tracking import lineage
from dfganext.tracking import runs as tracking


def main() -> None:
    chosen = settings.load()
    with tracking.stage_run("report", chosen, reads=[paths.SPLIT, paths.EVALUATE_METRICS]) as run:
        found = evidence.load(chosen, lineage.evaluations(paths.SPLIT))
        pictures = page.draw(found)
        paths.PAGE.parent.mkdir(parents=True, exist_ok=True)
        paths.PAGE.write_text(page.render(found, pictures), encoding="utf-8")
        run.log_artifact(paths.PAGE, "report")
        run.log_headline(evaluate.headline(found.evaluate))
        run.log_metrics({f"table1_{row.key}": row.mean for row in found.rows if row.records})
        print(f"{paths.PAGE} is up to date.")


if __name__ == "__main__":
    pipeline.run(main)
