"""Write one page with all tables, figures and claims, from this workspace's results and other recorded experiments."""

from dfganext import paths, pipeline
from dfganext.evaluation import evaluate
from dfganext.report import evidence, page
from dfganext.settings import load_settings
from dfganext.tracking import lineage, runs


def main() -> None:
    settings = load_settings()
    with runs.stage_run("report", settings, reads=[paths.SPLIT, paths.EVALUATE_METRICS]) as run:
        found = evidence.load(settings, lineage.evaluations(paths.SPLIT))
        figure_paths = page.draw(found)
        paths.PAGE.parent.mkdir(parents=True, exist_ok=True)
        paths.PAGE.write_text(page.render(found, figure_paths), encoding="utf-8")
        run.log_artifact(paths.PAGE, "report")
        run.log_key_metrics(evaluate.key_metrics(found.evaluate))
        run.log_metrics({f"table1_{row.key}": row.mean for row in found.rows if row.records})
        run.log_metrics({f"architecture_{row.model}": row.mean for row in found.architectures if row.records})
        print(f"{paths.PAGE} is up to date.")


if __name__ == "__main__":
    pipeline.run(main)
