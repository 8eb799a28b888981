import importlib.util
import shutil
from pathlib import Path

import pytest
from helpers import add_rule, detector, png
from PIL import Image

if importlib.util.find_spec("gradio") is None:  # not imported here: the demo sets variables that Gradio reads on import
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The folder of a small untrained model that decides, with a model card that loads an image from another host."""
    folder = add_rule(detector(tmp_path_factory.mktemp("demo") / "model", good=True, threshold=0.45))
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n# A small model\n\n![badge](https://example.org/a.png)\n"
    )
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with images and with files that cannot be read; names with characters that HTML and CSV treat as special."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0, 1))
    (folder / "b.png").write_bytes(png(1, 1))
    (folder / "=1+1,<b>&.png").write_bytes(png(1, 2))
    (folder / "broken.jpg").write_bytes(png(0, 1)[:300])
    (folder / "empty.jpg").touch()
    Image.new("L", (9000, 8000)).save(folder / "huge.png")
    frames = [Image.new("RGB", (40, 40), color) for color in ("white", "black")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    shutil.copyfile(folder / "a.png", folder / "copy of a.png")
    return folder
