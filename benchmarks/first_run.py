"""`make repro` in a fresh clone: the set-up and each stage, and what of it is the start of processes.

    python -m benchmarks.first_run [--keep FOLDER]

Installs everything once more, so it needs the package index or a cache of it. The clone has the last commit, not later changes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, Goal, Table, alternate, plain_environment

CASE = "the embedded sample, fresh clone"
STAGE = re.compile(r"Running stage '(?P<name>[^']+)'")
IMPORTS = "import mlflow, numpy, pandas, sklearn, timm, torch"
"""What a stage that trains or predicts must import, whoever writes it."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time `make repro` in a fresh clone.")
    parser.add_argument("--keep", type=Path, help="clone into this new folder, and leave it there")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        clone = keep.absolute() if keep else Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        write(clone)


def write(clone: Path) -> None:
    """Run `make repro` in a clone and write the table."""
    table = Table("first_run")
    environment = plain_environment() | {"PYTHONUNBUFFERED": "1"}
    path = environment["PATH"].split(os.pathsep)[1:]  # make finds a Python that is not this environment's
    environment["PATH"] = os.pathsep.join(path)
    environment.pop("VIRTUAL_ENV", None)
    start = time.perf_counter()
    subprocess.run(["make", "setup"], cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
    set_up = time.perf_counter() - start
    stages, workflow = timed_stages(["make", "repro"], clone, environment)
    table.add(CASE, "make repro, set-up included", "s", [set_up + workflow], goal=Goal("ours", most=240))
    table.add(CASE, "set-up", "s", [set_up])
    for name, seconds in stages.items():
        table.add(CASE, f"stage {name}", "s", [seconds])
    table.add(CASE, "before the first stage", "s", [workflow - sum(stages.values())])
    python = str(clone / ".venv" / "bin" / "python")
    starts = alternate(
        {"imports": lambda: subprocess.run([python, "-c", IMPORTS], check=True, env=environment)}, rounds=5
    )
    table.add("a new process", f"`{IMPORTS}`", "s", starts["imports"])
    table.write("dvc")


def timed_stages(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[dict[str, float], float]:
    """Seconds from the start of each stage, by DVC's output, to the next or to the end; and of the whole command.

    RuntimeError with the output if the command fails.
    """
    lines: list[str] = []
    starts: dict[str, float] = {}
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := STAGE.search(line):
                starts[found["name"]] = time.perf_counter()
                print(line, end="", file=sys.stderr, flush=True)
    end = time.perf_counter()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{''.join(lines)}")
    ends = [*list(starts.values())[1:], end]
    return {name: after - begun for (name, begun), after in zip(starts.items(), ends, strict=True)}, end - start


if __name__ == "__main__":
    main()
