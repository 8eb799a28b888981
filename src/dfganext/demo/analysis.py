"""From uploaded files to what the page shows of each: the row of `dfganext predict`, the image as the model sees it, its Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfganext.data.discovery import BATCH_BYTES, BATCH_FILES, Unread
from dfganext.explain import gradcam
from dfganext.inference.batching import MicroBatcher
from dfganext.inference.detector import COPIES, Detector
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
            pixels: list[np.ndarray] = []
            encoded = [data if isinstance(data, bytes) else data.reason for _, data in batch]
            found = self.detector.predict(encoded, scores=self._recording(pixels), stability=stability)
            own = pixels[0][:: 1 + len(COPIES) if stability else 1] if pixels else np.empty(0)
            drawn = iter(zip(own, self._heat(own), strict=True))
            for (name, _), prediction in zip(batch, found, strict=True):
                readable = prediction.error is None
                yield Result(row_of(name, prediction), *(next(drawn) if readable else ()))

    def _recording(self, pixels: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """The batcher, as a function that also appends the pixels that it is given."""

        def scores(rows: np.ndarray) -> np.ndarray:
            pixels.append(rows)
            return self.batcher(rows)

        return scores

    def _heat(self, pixels: np.ndarray) -> np.ndarray:
        """Grad-CAM of "fake" of images (N, size, size, 3): (N, h, w). It adds hooks to the shared network, so it runs alone."""
        if not len(pixels):
            return pixels
        model, config = self.detector.model, self.detector.config
        return self.batcher.run_exclusive(lambda: gradcam.raw_maps(model, config, pixels, [FAKE] * len(pixels)))


def _size(file: tuple[str, bytes | Unread]) -> int:
    return len(file[1]) if isinstance(file[1], bytes) else 0
