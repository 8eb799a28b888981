"""Check params.yaml and data.dvc, and write down what DVC cannot see by itself: library versions and the weights file."""

import sys
from pathlib import Path

import yaml

from dfganext import files, paths, pipeline, versions
from dfganext.errors import UserError
from dfganext.settings import load_settings, weights_file

PINNED = Path("data.dvc")


def main() -> None:
    settings = load_settings()
    if PINNED.exists():
        refuse_what_would_come_back(PINNED)
    elif paths.DATA.is_dir():
        print(
            f"WARNING: no {PINNED} pins {paths.DATA}/, so queued and temporary experiments do not see these images: run "
            f"`dvc add {paths.DATA}`.",
            file=sys.stderr,
        )
    else:
        raise UserError(
            f"{PINNED} and {paths.DATA}/ are both missing: run `git checkout {PINNED}` for the sample, or put your own images into "
            f"{paths.DATA}/real and {paths.DATA}/fake and run `dvc add {paths.DATA}`."
        )
    files.write_json(paths.VERSIONS, versions.installed())
    point_at_weights(paths.WEIGHTS, settings.convnext.weights)


def point_at_weights(place: Path, weights: str) -> None:
    """Make `place` a link to the file of `convnext.weights`, whose content DVC then compares, or the setting as text.

    UserError if there is no such file.
    """
    file = weights_file(weights)
    if file is not None and not file.is_file():
        raise UserError(
            f"convnext.weights: {file} is no file; give random, imagenet, or the path of a .safetensors or .pth file, an "
            "absolute one for queued experiments."
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if file is None:
        place.write_text(f"{weights}\n", encoding="utf-8")
    else:
        place.symlink_to(file.resolve())


def refuse_what_would_come_back(pinned: Path) -> None:
    """UserError where DVC would import other images than those of the folder, or where the file is none of DVC's.

    Only an import of a path has a hash to compare: those from a repository or an object store keep a revision or an ETag.
    """
    try:
        content = yaml.safe_load(pinned.read_text(encoding="utf-8"))
        made = content["outs"][0].get("md5")
        source = (content.get("deps") or [{}])[0]
        imported = source.get("md5")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError):
        raise UserError(
            f"{pinned} is no file that DVC can read: restore it with `git checkout {pinned}`, or delete it and run "
            f"`dvc add {paths.DATA}`."
        ) from None
    if imported and imported != made:
        raise UserError(
            f"{pinned} imports {source.get('path')}/ and DVC would put that back over your own images: run "
            f"`dvc remove {pinned}`, then `dvc add {paths.DATA}`."
        )


if __name__ == "__main__":
    pipeline.run(main)
