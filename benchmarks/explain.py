"""Grad-CAM maps of many images for both classes, against pytorch-grad-cam as its documentation uses it: one call per class.

pytorch-grad-cam also rescales and enlarges each map, which takes a small part of its time. The limit is the forward pass alone, in
batches of the same size.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from benchmarks import pictures
from benchmarks.harness import Goal, Table, alternate
from dfganext.explain import gradcam
from dfganext.labels import ALL
from dfganext.models import classifier
from dfganext.models.batches import batches

ARCHITECTURES = ("convnext_tiny", "tf_efficientnet_lite0")
IMAGES, SIZE, ROUNDS = 64, 256, 3
AGAINST = "pytorch-grad-cam, one call per class"


def main() -> None:
    table = Table("explain")
    for architecture in ARCHITECTURES:
        compare(table, architecture, IMAGES, SIZE, ROUNDS)
    table.write("grad-cam", "timm")


def compare(table: Table, architecture: str, count: int, size: int, rounds: int) -> None:
    """Milliseconds per image. The rival's maps have the same ranking of places."""
    model, config = classifier.build(architecture, "ce", size, seed=1)
    model = model.eval().to(memory_format=torch.channels_last)
    pixels = np.stack([pictures.picture(size, seed) for seed in range(count)])

    def ours() -> np.ndarray:
        return gradcam.maps_of_both(model, config, pixels)

    def rival() -> np.ndarray:
        maps = []
        with GradCAM(model=model, target_layers=[classifier.map_layer(model)]) as cam:
            for label in ALL:
                for _, batch in batches(pixels, gradcam.BATCH):
                    targets = [ClassifierOutputTarget(label)] * len(batch)
                    maps.append(cam(input_tensor=classifier.preprocess(batch, config), targets=targets))
        return np.concatenate(maps).reshape(2, count, size, size)

    def forward() -> None:
        classifier.predict_outputs(model, config, pixels, gradcam.BATCH)

    assert_same(ours(), rival())
    seconds = alternate({"ours": ours, "rival": rival, "forward": forward}, rounds)
    each = {name: [1e3 * one / count for one in values] for name, values in seconds.items()}
    limit = median(each["forward"])
    goal = Goal("ratio", least=2)
    table.add(
        f"{architecture}, {size} px", "time", "ms per image", each["ours"], each["rival"], limit, goal, against=AGAINST
    )


def assert_same(ours: np.ndarray, rival: np.ndarray) -> None:
    """Maps with any evidence correlate, although the rival's are rescaled and enlarged by another filter."""
    for raw, other in zip(ours.reshape(-1, *ours.shape[2:]), rival.reshape(-1, *rival.shape[2:]), strict=True):
        if np.ptp(raw) > 0:
            found = np.corrcoef(gradcam.enlarge(raw, len(other)).ravel(), other.ravel())[0, 1]
            assert found > 0.9, f"the maps' correlation is {found}"


if __name__ == "__main__":
    main()
