"""dvc.yaml and the code name the same files and settings."""

from pathlib import Path

import yaml

from dfganext import paths, settings

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def names(entries) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def test_every_output_is_in_paths():
    known = {value.as_posix() for value in vars(paths).values() if isinstance(value, Path)}
    for stage, spec in STAGES.items():
        for out in names(spec.get("outs", []) + spec.get("metrics", []) + spec.get("plots", [])):
            assert out in known, f"{stage}: {out}"


def test_dvc_can_restore_every_stage_but_those_that_must_run_in_each_clone():
    """DVC keeps no results of a stage with an output that it does not cache, unless that is a metric or a plot."""
    for stage, spec in STAGES.items():
        uncached = [
            out
            for one in spec.get("outs", [])
            if isinstance(one, dict)
            for out in one.values()
            if out.get("cache") is False
        ]
        assert all(out.get("persist") for out in uncached), stage
        assert bool(uncached) == (stage in ("check", "report", "promote")), stage


def test_every_declared_setting_and_source_file_exists():
    flat = settings.flatten(settings.load_settings(ROOT / "params.yaml"))
    for stage, spec in STAGES.items():
        for key in (entry for entry in spec.get("params", []) if isinstance(entry, str)):
            assert any(name == key or name.startswith(f"{key}.") for name in flat), f"{stage}: {key}"
        for dependency in spec["deps"]:
            if dependency.startswith(("src/", "stages/")):
                assert (ROOT / dependency).exists(), f"{stage}: {dependency}"


def test_every_stage_runs_the_script_of_its_name():
    for stage, spec in STAGES.items():
        assert spec["cmd"] == f"python -m stages.{stage}"
        text = (ROOT / "stages" / f"{stage}.py").read_text()
        assert len(text.splitlines()) < 100
        if stage != "check":
            assert f'stage_run("{stage}"' in text.replace("\n            ", "")
