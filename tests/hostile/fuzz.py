"""Coverage-guided fuzzing of a way in, with atheris (`pip install atheris`): inputs that reach new lines are mutated further.

    python -m tests.hostile.fuzz decode --minutes 40
    python -m tests.hostile.fuzz extract --minutes 20

It begins with the originals and some mutations of the corpus, and ends at the first input that breaks a rule of
`tests.hostile.limits`, takes longer than 10 s or needs too much memory; the input is kept in a file that it names. What ran is
appended to tests/stress/results/fuzz.csv. Coverage is that of Python code: of this package, Pillow's plugins, zipfile and tarfile.
"""

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import pandas as pd

from dfganext.images import FORMATS
from tests.hostile import corpus, limits

RESULTS = Path(__file__).parent.parent / "stress" / "results" / "fuzz.csv"

LONGEST = 1 << 16
"""Size of an input, in bytes."""

SEEDS = 40
"""Files of the corpus, of each format, to begin with."""


def write_seeds(way_in: str, folder: Path) -> None:
    """Files to begin with: the originals of the images, and a part of the corpus."""
    if way_in == "decode":
        originals = (
            (f"{format}-{number}", data) for format in FORMATS for number, data in enumerate(corpus.originals(format))
        )
        files = chain(originals, corpus.every_mutation(SEEDS))
    else:
        files = corpus.archives(8 * SEEDS)
    corpus.write(folder, [(name, data) for name, data in files if len(data) <= LONGEST])


def fuzz(way_in: str, minutes: float) -> dict[str, object]:
    """Fuzz in a process of its own: a row of RESULTS."""
    with tempfile.TemporaryDirectory() as folder:
        # in another process: making bombs needs memory, and Linux counts the peak of the process that starts the fuzzer as its own
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(write_seeds, way_in, Path(folder)).result()
        options = [
            f"-max_total_time={60 * minutes:.0f}",
            f"-timeout={limits.SECONDS}",
            f"-max_len={LONGEST}",
            "-seed=12",
        ]
        command = [sys.executable, "-W", "ignore", "-m", "tests.hostile.target", way_in, folder, *options]
        done = subprocess.run([*command, "-print_final_stats=1"], stderr=subprocess.PIPE, text=True, errors="replace")
    said = done.stderr
    covered = [int(number) for number in re.findall(r"cov: (\d+)", said)] or [0]
    found = re.search(r"Test unit written to (\S+)", said)
    if done.returncode and found is None:
        raise SystemExit(f"the fuzzer failed:\n{said[-2000:]}")
    if found is not None:
        print(said[-3000:], file=sys.stderr)
    return {
        "way in": way_in,
        "minutes": minutes,
        "inputs": _statistic(said, "number_of_executed_units"),
        "coverage by the corpus": covered[0],
        "coverage at the end": covered[-1],
        "peak MiB": _statistic(said, "peak_rss_mb"),
        "found": found[1] if found else "nothing",
    }


def _statistic(said: str, name: str) -> int:
    """A number of those that libFuzzer prints at its end."""
    return int(re.search(rf"stat::{name}:\s+(\d+)", said)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz a way in.")
    parser.add_argument("way_in", choices=list(limits.WAYS_IN))
    parser.add_argument("--minutes", type=float, default=40)
    options = parser.parse_args()
    row = fuzz(options.way_in, options.minutes)
    pd.DataFrame([row]).to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)
    print(row)
    sys.exit(row["found"] != "nothing")


if __name__ == "__main__":
    main()
