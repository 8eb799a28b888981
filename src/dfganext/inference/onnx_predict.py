"""Predict image files with the ONNX model in this folder. Needs onnxruntime, numpy and Pillow; no other file of DF-GANeXt.

python predict.py IMAGE [IMAGE ...]
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
CONFIG = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
POINT = json.loads((FOLDER / "operating_point.json").read_text(encoding="utf-8"))


def prepare(path: str) -> np.ndarray:
    """The input of the model: uint8 (size, size, 3), RGB, the largest centred square of the image."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    side, size = min(image.size), CONFIG["size"]
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling[CONFIG["interpolation"].upper()])
    if CONFIG["reencode"]:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=75, subsampling="4:2:0")
        image = Image.open(file)
    return np.asarray(image)


def decide(p_fake: float, novelty: float) -> str:
    """The decision "real", "fake" or "unsure"."""
    rule = POINT.get("decision") or {}
    novel_above, fake_above, real_up_to = (rule.get(name) for name in ("novel_above", "fake_above", "real_up_to"))
    if novel_above is not None and novelty > novel_above:
        return "unsure"
    if fake_above is not None and p_fake > fake_above:
        return "fake"
    return "real" if real_up_to is not None and p_fake <= real_up_to else "unsure"


def main() -> None:
    session = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=["CPUExecutionProvider"])
    for path in sys.argv[1:]:
        p_fake, novelty = (float(output[0]) for output in session.run(None, {"pixels": prepare(path)[None]}))
        label = "fake" if p_fake > POINT["threshold"] else "real"
        record = {"path": path, "label": label, "p_fake": p_fake, "decision": decide(p_fake, novelty)}
        print(json.dumps(record))


if __name__ == "__main__":
    main()
