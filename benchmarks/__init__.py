"""Speed beside that of a rival, set up as an expert would: `make bench`, or one subject, `python -m benchmarks.resize`.

Each script times this code and its rival in turns, in one run, with as many cores for each, and fails where their answers differ.
It measures the hardware limit in the same run, prints a table and writes it to benchmarks/results/, in a file named by hardware
and versions.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from dfganext import runtime as process

if "BENCHMARKS_PLAIN" not in os.environ:  # a rival's own process keeps the defaults of Python and PyTorch
    process.prepare()
