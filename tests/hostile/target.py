"""The process that `tests.hostile.fuzz` runs: python -m tests.hostile.target decode FOLDER -max_total_time=60."""

import re
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dfganext", "PIL", "zipfile", "tarfile"]):
    from PIL import Image

    from tests.hostile import limits

    Image.init()  # imports the plugins, which read the headers

ADDED_MIB = 1024
"""Memory above that of the idle process."""


def main() -> None:
    """Fuzz a way in, from the files of a folder, until libFuzzer ends the process."""
    name, way_in, *arguments = sys.argv
    function, _ = limits.WAYS_IN[way_in]
    idle = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
    atheris.Setup([name, f"-rss_limit_mb={idle + ADDED_MIB}", *arguments], lambda data: function(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
