"""Speed, side by side with what a user would otherwise run: `make bench`, or one subject, `python -m benchmarks.resize`.

Each script times this code and its rival in turns, in one run, measures the hardware limit that counts in the same run, prints a
table and writes it to benchmarks/results/, in a file named by hardware and versions.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from dfganext import process

if "BENCHMARKS_PLAIN" not in os.environ:  # a rival in a process of its own has what Python and PyTorch give everybody
    process.prepare()
