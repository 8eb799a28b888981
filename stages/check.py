"""Check params.yaml and data.dvc, and write what DVC cannot detect itself: library versions and the weights file."""

import sys
from pathlib import Path

import yaml

from dfganext import files, paths, pipeline, versions
from dfganext.errors import UserError
from dfganext.settings import load_settings, weights_file

DATA_DVC = Path("data.dvc")


def main() -> None:
    settings = load_settings()
    if DATA_DVC.exists():
        refuse_overwriting_import(DATA_DVC)
    elif paths.DATA.is_dir():
        print(
            f"WARNING: there is no {DATA_DVC} for {paths.DATA}/, so queued and temporary experiments cannot read these images: run "
            f"`dvc add {paths.DATA}`.",
            file=sys.stderr,
        )
    else:
        raise UserError(
            f"{DATA_DVC} and {paths.DATA}/ are both missing: run `git checkout {DATA_DVC}` for the sample, or put your own images into "
            f"{paths.DATA}/real and {paths.DATA}/fake and run `dvc add {paths.DATA}`."
        )
    files.write_json(paths.VERSIONS, versions.installed())
    link_weights(paths.WEIGHTS, settings.convnext.weights)


def link_weights(link: Path, weights: str) -> None:
    """Make `link` a symbolic link to the file of `convnext.weights`, so that DVC compares its content.

    For imagenet and random, `link` is a file with that word. UserError if the file does not exist.
    """
    file = weights_file(weights)
    if file is not None and not file.is_file():
        raise UserError(
            f"convnext.weights: {file} is not a file; give random, imagenet, or the path of a .safetensors or .pth file, an "
            "absolute one for queued experiments."
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    if file is None:
        link.write_text(f"{weights}\n", encoding="utf-8")
    else:
        link.symlink_to(file.resolve())


def refuse_overwriting_import(data_dvc: Path) -> None:
    """UserError if DVC would import other images over those in the folder, or if the file is not a .dvc file.

    Only an import of a path has a hash to compare: imports from a repository or an object store have a revision or an ETag.
    """
    try:
        content = yaml.safe_load(data_dvc.read_text(encoding="utf-8"))
        output_md5 = content["outs"][0].get("md5")
        source = (content.get("deps") or [{}])[0]
        source_md5 = source.get("md5")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError):
        raise UserError(
            f"{data_dvc} is not a file that DVC can read: restore it with `git checkout {data_dvc}`, or delete it and run "
            f"`dvc add {paths.DATA}`."
        ) from None
    if source_md5 and source_md5 != output_md5:
        raise UserError(
            f"{data_dvc} imports {source.get('path')}/, and DVC would overwrite your own images with it: run "
            f"`dvc remove {data_dvc}`, then `dvc add {paths.DATA}`."
        )


if __name__ == "__main__":
    pipeline.run(main)
