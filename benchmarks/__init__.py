"""Speed compared with a rival, an expert's implementation of the same: `make bench`, or `python -m benchmarks.resize` for one.

Each script runs this code and its rival alternately, with the same number of cores, and fails if their results differ. It
measures the hardware limit in the same run, prints a table and writes it to benchmarks/results/, to a file named by hardware and
versions.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from dfganext import runtime

if "BENCHMARKS_PLAIN" not in os.environ:  # a rival's process keeps the defaults of Python and PyTorch
    runtime.prepare(keep_all=True)
