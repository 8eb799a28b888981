"""Check params.yaml, data.dvc, DVC's lock and the engine, and write what DVC cannot detect: library versions, weights files."""

import json
import sys
import time
from pathlib import Path

import yaml

from dfganext import files, paths, pipeline, versions
from dfganext.errors import UserError
from dfganext.inference import engines
from dfganext.settings import load_settings, weights_file


def main() -> None:
    try:
        settings = load_settings()
    except UserError as error:  # also after `dvc exp run -S`, which has written the value into the file
        raise UserError(f"{error} `git checkout params.yaml` brings the committed settings back.") from None
    if paths.DATA_DVC.exists():
        refuse_overwriting_import()
    elif paths.DATA.is_dir():
        print("WARNING: queued experiments cannot read data/ without data.dvc: run `dvc add data`.", file=sys.stderr)
    else:
        raise UserError(
            "data.dvc and data/ are both missing: run `git checkout data.dvc` for the sample, or put your own images into "
            "data/real and data/fake and run `dvc add data`."
        )
    remove_damaged_lock()
    if settings.promote.engine != "torch":
        engines.require(settings.promote.engine)
    files.write_json(paths.VERSIONS, versions.installed())
    link_weights(paths.WEIGHTS, "convnext.weights", settings.convnext.weights)
    link_weights(paths.TEACHER, "convnext.teacher.weights", settings.convnext.teacher.weights)


def link_weights(link: Path, setting: str, weights: str | None) -> None:
    """Make `link` a symbolic link to the file of a setting, so that DVC compares its content.

    For imagenet, random and null, it is a file with that word. UserError if the file does not exist.
    """
    file = weights_file(weights)
    if file is not None and not file.is_file():
        raise UserError(
            f"{setting}: {file} is not a file; give random, imagenet, or the path of a .safetensors or .pth file, an "
            "absolute one for queued experiments."
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    if file is None:
        link.write_text(f"{weights or 'null'}\n", encoding="utf-8")
    else:
        link.symlink_to(file.resolve())


def refuse_overwriting_import() -> None:
    """UserError if DVC would import other images over those in data/, or if data.dvc is not a .dvc file.

    Only an import of a path has a hash to compare: imports from a repository or an object store have a revision or an ETag.
    """
    try:
        content = yaml.safe_load(paths.DATA_DVC.read_text(encoding="utf-8"))
        source = (content.get("deps") or [{}])[0]
        overwrites = source.get("md5") not in (None, content["outs"][0].get("md5"))
    except (ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError):
        raise UserError(
            "data.dvc is not a file that DVC can read: restore it with `git checkout data.dvc`, or delete it and run "
            "`dvc add data`."
        ) from None
    if overwrites:
        raise UserError(
            f"data.dvc imports {source.get('path')}/, and DVC would overwrite your own images with it: run "
            "`dvc remove data.dvc`, then `dvc add data`."
        )


def remove_damaged_lock() -> None:
    """Remove DVC's list of files in use if it is cut off, as after a full disk: DVC writes it in place, and refuses to go on."""
    for _ in range(5):  # another DVC command may be writing it
        try:
            json.loads(paths.DVC_LOCK.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(0.2)
    paths.DVC_LOCK.unlink(missing_ok=True)
    print(f"removed {paths.DVC_LOCK}, which was damaged", file=sys.stderr)


if __name__ == "__main__":
    pipeline.run(main)
