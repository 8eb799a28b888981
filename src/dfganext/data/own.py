"""`make data FROM=/path/to/images`: put somebody's own images in the place of data/, after checking that nothing is lost.

python -m dfganext.data.own /path/to/images
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections import Counter
from pathlib import Path, PurePosixPath

from dfganext import paths, pipeline
from dfganext.data import archives, discovery
from dfganext.errors import UserError
from dfganext.settings import load_settings

NEW = Path("data.new")


def main() -> None:
    """Check the images, copy them, and have DVC track the copy."""
    parser = argparse.ArgumentParser(description="Put your own images in the place of data/.")
    parser.add_argument(
        "folder", help="with folders named real and fake, at any depth, or zip and tar archives of these"
    )
    given = parser.parse_args().folder
    if not given:
        raise UserError("FROM is missing: make data FROM=/path/to/images, with folders named real and fake in it.")
    counts = usable(Path(given))
    require_saved()
    shutil.rmtree(NEW, ignore_errors=True)
    try:
        shutil.copytree(given, NEW, ignore=_links_to_folders)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(NEW, ignore_errors=True)
        raise UserError(f"{given} cannot be copied ({error}): data/ is as it was.") from None
    if paths.DATA_DVC.exists():
        run("dvc", "remove", "--quiet", str(paths.DATA_DVC))
    shutil.rmtree(paths.DATA, ignore_errors=True)
    NEW.rename(paths.DATA)
    run("dvc", "add", "--quiet", str(paths.DATA))
    print(f"data/ now has {', '.join(f'{count:,} {name} files' for name, count in counts.items())}.")
    if load_settings().convnext.weights == "random":
        print(
            "A network that starts from random weights needs thousands of photographs: with a network connection, set"
        )
        print("convnext.weights to imagenet and convnext.size to 224 or more in params.yaml.")
    if Path("external/other-generator").is_dir():
        print("external/ still has the drawn test sets of the sample: put labelled sets of your own in their place.")
    print("For a page without the paper's claims, set report.paper to false.")
    print(
        "Next: make repro, then open reports/index.html. The sample comes back with: git checkout data.dvc && dvc repro data.dvc"
    )


def _links_to_folders(folder: str, names: list[str]) -> list[str]:
    """Of the names in a folder, those that `files_of_source` refuses: they may lead back to a folder above."""
    return [name for name in names if (place := Path(folder, name)).is_symlink() and place.is_dir()]


def usable(folder: Path) -> dict[str, int]:
    """The number of files of each class below a folder, and of archives. UserError if a class is missing."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: nothing was changed. Give one with folders named real and fake in it."
        )
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{folder} contains this repository: nothing was changed. Give a folder that has only the images."
        )
    if paths.DATA.exists() and folder.resolve().is_relative_to(paths.DATA.resolve()):
        raise UserError(f"{folder} is data/ itself: run `dvc add data` if you have changed it, then `make repro`.")
    files, _ = discovery.files_of_source(folder, str(folder), above=PurePosixPath(folder.resolve().name))
    found = Counter(discovery.label_of(file.path) for file in files)
    packed = sum(archives.stem(file.path.name) is not None for file in files)
    if not packed and not (found["real"] and found["fake"]):
        raise UserError(
            f"{folder} has {found['real']} files below folders named real and {found['fake']} below folders named fake: nothing "
            "was changed. Both are needed; rename the folders."
        )
    counts = {"real": found["real"], "fake": found["fake"]}
    return counts | ({"packed": packed} if packed else {})


def require_saved() -> None:
    """UserError if data/ holds files that are nowhere else: neither in samples/ nor in DVC's cache."""
    if not paths.DATA.exists():
        return
    if not paths.DATA_DVC.exists() or run("dvc", "status", "--quiet", str(paths.DATA_DVC), check=False):
        raise UserError(
            "data/ holds files that DVC does not have: move them elsewhere, or keep them with `dvc remove data.dvc` (if it is there) "
            "and `dvc add data`, and run this again."
        )


def run(*command: str, check: bool = True) -> int:
    """Exit code of a command. UserError if it failed and `check` is set."""
    code = subprocess.run(command).returncode
    if check and code:
        raise UserError(f"`{' '.join(command)}` failed, see above.")
    return code


if __name__ == "__main__":
    pipeline.run(main)
