"""The process that `tests.hostile.fuzz` runs: python -m tests.hostile.target decode FOLDER -max_total_time=60."""

import sys

import atheris
import psutil

with atheris.instrument_imports(include=["dfganext", "PIL", "zipfile", "tarfile"]):
    from PIL import Image

    from tests.hostile import limits

    Image.init()  # imports the plugins, which read the headers


def main() -> None:
    """Fuzz a way in, from the files of a folder, until libFuzzer ends the process."""
    name, way_in, *arguments = sys.argv
    function, _ = limits.WAYS_IN[way_in]
    idle = psutil.Process().memory_info().rss >> 20
    atheris.Setup([name, f"-rss_limit_mb={idle + limits.MAX_MIB}", *arguments], lambda data: function(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
