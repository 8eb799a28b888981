"""Collect the images of the source, decode each once, and list the usable ones in a manifest, the others with a reason."""

import shutil

from dfganext import files, paths, pipeline
from dfganext.data import manifest, sources
from dfganext.settings import load_settings
from dfganext.tracking import runs


def main() -> None:
    settings = load_settings()
    with (
        runs.stage_run("download", settings, makes=[paths.MANIFEST, paths.REJECTS]) as run,
        sources.exclusive(paths.work()),
    ):
        collection = sources.collect(settings.download, paths.DATA, paths.work())
        built = manifest.build(collection, paths.RAW, settings.download, settings.machine.workers)
        files.write_table(paths.MANIFEST, built.manifest)
        files.write_table(paths.REJECTS, built.rejects)
        manifest.require_both_classes(built, paths.REJECTS)
        shutil.rmtree(paths.work() / sources.UNPACKED, ignore_errors=True)
        counts = built.counts
        run.set_tags({"source": settings.download.source})
        run.log_metrics({**counts, "rejects": len(built.rejects), "bytes": int(built.manifest["bytes"].sum())})
        run.log_artifact(paths.REJECTS, "data")
        refused = f"{len(built.rejects)} files refused"
        refused += f": {paths.REJECTS} says why" if len(built.rejects) else ""
        print(f"{counts['real']} real and {counts['fake']} fake images; {refused}")


if __name__ == "__main__":
    pipeline.run(main)
