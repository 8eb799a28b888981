"""`dvc repro` with nothing to do and 12,000 images in data/, against a workflow that stores one file per resized image."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from benchmarks import pictures
from benchmarks.harness import ROOT, Goal, Table, alternate, plain_environment, shipped_but

COUNT, SIZE = 12_000, 64
ROUNDS = 3

QUICK = {
    "convnext.architecture": "test_convnext",
    "convnext.size": 32,
    "convnext.epochs": 1,
    "convnext.batch_size": 64,
    "autoencoder.size": 32,
    "autoencoder.epochs": 1,
    "subsample.near_duplicate_bits": 8,
    "robustness.per_class": 4,
    "gradcam.per_class": 1,
    "gradcam.faithfulness": 1,
    "promote.architectures": ["test_convnext"],
}
"""Settings with which all stages process all images in a minute or two; the stages are not timed."""

FILES_STAGE = '''"""What many projects have in place of `resize`: one file per image."""
from pathlib import Path
import pandas as pd
from PIL import Image
target = Path("artifacts/images/files")
target.mkdir(parents=True, exist_ok=True)
for row, path in enumerate(pd.read_csv("artifacts/split.csv").path):
    Image.open(Path("artifacts/raw") / path).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS).save(target / f"{row}.png")
'''


def main() -> None:
    table = Table("repro")
    with tempfile.TemporaryDirectory() as temporary:
        ours = project(Path(temporary) / "ours")
        run(ours, "dvc", "repro", "--quiet")
        rival = Path(temporary) / "rival"
        shutil.copytree(ours, rival, symlinks=True)
        with_files(rival)
        seconds = alternate(
            {
                "whole": lambda: run(ours, "dvc", "repro"),
                "ours": lambda: run(ours, "dvc", "repro", "resize"),
                "rival": lambda: run(rival, "dvc", "repro", "resize"),
            },
            ROUNDS,
        )
    case = f"nothing to do, {COUNT} images"
    table.add(case, "time of dvc repro", "s", seconds["whole"], goal=Goal("ours", most=5))
    table.add(case, "time of dvc repro resize", "s", seconds["ours"], seconds["rival"], against="a file an image")
    table.write("dvc")


def project(folder: Path) -> Path:
    """A copy of this repository with other settings and images."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("samples/", "metrics/", "plots/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(shipped_but(QUICK), sort_keys=False))
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "remove", "data.dvc", "--quiet")
    pictures.folder_of(folder / "data", COUNT, SIZE, "JPEG", distinct=COUNT)
    run(folder, "dvc", "add", "--quiet", "data")
    return folder


def with_files(folder: Path) -> None:
    """Change a copy of the project into one that stores one file per image and ends with that stage."""
    spec = yaml.safe_load((folder / "dvc.yaml").read_text())
    (folder / "stages" / "files.py").write_text(FILES_STAGE)
    stages = {name: spec["stages"][name] for name in ("check", "download", "subsample", "audit")}
    stages["resize"] = {
        "cmd": "python -m stages.files",
        "deps": ["artifacts/raw", "artifacts/split.csv", "stages/files.py"],
        "outs": ["artifacts/images"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    run(folder, "dvc", "repro", "--quiet", "resize")


def run(folder: Path, *words: str) -> None:
    """Run a command in a folder. RuntimeError with its output if it fails."""
    done = subprocess.run(
        words, cwd=folder, env=plain_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}")


if __name__ == "__main__":
    main()
