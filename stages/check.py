"""Check params.yaml as a whole, and that data.dvc pins the images that are meant."""

from pathlib import Path

import yaml

from dfganext import pipeline, settings
from dfganext.errors import UserError


def main() -> None:
    settings.load()
    pinned = yaml.safe_load(Path("data.dvc").read_text(encoding="utf-8"))
    if "deps" in pinned and pinned["deps"][0].get("md5") != pinned["outs"][0].get("md5"):
        raise UserError(
            f"data.dvc imports {pinned['deps'][0]['path']}/ and DVC would put that back over your own images: run "
            "`dvc remove data.dvc`, then `dvc add data`."
        )


if __name__ == "__main__":
    pipeline.run(main)
