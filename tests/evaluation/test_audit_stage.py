"""The audit stage reads the images itself: sizes after both classes were encoded in the same way."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfganext import images, paths
from dfganext.errors import UserError
from stages.audit import reencoded_bytes


def test_every_image_that_download_accepts_can_be_reencoded(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RAW", tmp_path)
    rng = np.random.default_rng(0)
    sides = {"small.png": (8, 8), "square.png": (40, 40), "long.png": (16, 66_000)}
    pixels = {name: rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for name, shape in sides.items()}
    for name, image in pixels.items():
        Image.fromarray(image).save(tmp_path / name)
    found = reencoded_bytes(pd.DataFrame({"path": list(sides)}))
    seen = [pixels["small.png"], pixels["square.png"], pixels["long.png"][:, 32_992:33_008]]
    assert list(found) == [len(images.to_jpeg(image)) for image in seen]


@pytest.mark.parametrize("content", [None, b"no image"])
def test_an_image_that_has_changed_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setattr(paths, "RAW", tmp_path)
    if content is not None:
        (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=r"1\.png can no longer be read .*; run `dvc repro download` again"):
        reencoded_bytes(pd.DataFrame({"path": ["1.png"]}))
