"""From uploaded files to what the page shows of each: the row of `dfganext predict`, the image as the model sees it, its Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfganext.data.discovery import BATCH_BYTES, BATCH_FILES, Unread
from dfganext.explain import gradcam
from dfganext.inference.batching import MicroBatcher
from dfganext.inference.detector import Detector
from dfganext.inference.rows import Row, row_of
from dfganext.labels import FAKE
from dfganext.runtime import batches_by_bytes


@dataclass(frozen=True)
class Result:
    """What is known of one file.

    row: as of `dfganext predict`. pixels: the image as the model sees it, uint8 (size, size, 3). heat: the Grad-CAM of "fake",
    float32 (h, w), zero or above. Both are None where the file could not be read.
    """

    row: Row
    pixels: np.ndarray | None = None
    heat: np.ndarray | None = None


class Analyser:
    """A detector that several threads share: images of requests that arrive together form one batch.

    Args:
        folder: of the detector, as from `tracking.registry.resolve`.
    """

    def __init__(self, folder: Path) -> None:
        self.batcher = MicroBatcher(lambda pixels: self.detector.scores(pixels), BATCH_FILES)
        self.detector = self.batcher.run_exclusive(lambda: Detector.load(folder))

    def analyse(self, files: Iterable[tuple[str, bytes | Unread]], stability: bool = False) -> Iterator[Result]:
        """Yield one result per file, in order.

        Args:
            files: name and content of each; read a batch at a time.
            stability: also decide on copies of each image.
        """
        for batch in batches_by_bytes(files, _size, BATCH_FILES, BATCH_BYTES):
            prepared = [
                self.detector.prepare(data if isinstance(data, bytes) else data.reason, stability) for _, data in batch
            ]
            found = self.detector.predict_prepared(prepared, scores=self.batcher)
            own = [None if one.pixels is None else one.pixels[0] for one in prepared]
            heat = iter(self._heat([pixels for pixels in own if pixels is not None]))
            for (name, _), prediction, pixels in zip(batch, found, own, strict=True):
                yield Result(row_of(name, prediction), pixels, None if pixels is None else next(heat))

    def _heat(self, pixels: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Grad-CAM of "fake" of each image: (h, w). It adds hooks to the shared network, so it runs alone."""
        if not pixels:
            return []
        model, config, labels = self.detector.model, self.detector.config, [FAKE] * len(pixels)
        found = self.batcher.run_exclusive(lambda: gradcam.raw_maps(model, config, np.stack(pixels), labels))
        return list(found)


def _size(file: tuple[str, bytes | Unread]) -> int:
    return len(file[1]) if isinstance(file[1], bytes) else 0
