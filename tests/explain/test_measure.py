"""The tables are consistent: statistics of all images; faithfulness and sanity of some, for their predicted class."""

from dataclasses import replace

import numpy as np

from dfganext.data.arrays import Images
from dfganext.explain import gradcam, measure, statistics
from dfganext.models import classifier


def test_tables(shipped):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8), np.arange(10) % 2
    model, config = classifier.build("test_convnext", "ce", 64, seed=1)
    maps = gradcam.maps_of_both(model, config, pixels)
    images = Images(pixels, labels, [f"{number}.png" for number in range(10)], np.arange(10))
    predicted = rng.integers(0, 2, 10)
    order = [images.only(label)[::-1] for label in (0, 1)]
    chosen = replace(shipped.gradcam, faithfulness=2)
    tables = measure.tables(model, config, images, maps, predicted, order, chosen, seed=1)
    table = tables["statistics"]
    assert len(table) == 20 and set(statistics.NAMES) < set(table.columns)
    for row in table.to_dict(orient="records"):
        number = images.paths.index(row["path"])
        assert row["label"] == ("real", "fake")[labels[number]]
        assert row["maximum"] == maps[int(row["target"] == "fake"), number].max()
    assert tables["faithfulness"].images.tolist() == [4] * 4, "two of each class"
    assert len(tables["sanity"]) == 8 and len(tables["comparison"]) == 3 * len(statistics.NAMES)
