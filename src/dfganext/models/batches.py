"""Arrays of images to tensors, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def batches(images: np.ndarray, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[slice, Tensor]]:
    """Cut images (N, ...), memory-mapped or not, into tensors of at most `batch_size` rows, with the slice each is of."""
    for start in range(0, len(images), batch_size):
        part = slice(start, min(start + batch_size, len(images)))
        yield part, torch.from_numpy(np.array(images[part])).to(device)
