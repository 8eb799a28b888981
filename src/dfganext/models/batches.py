"""Arrays of images to tensors, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def batches(images: np.ndarray, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[slice, Tensor]]:
    """Yields the rows and the tensor of each batch of images (N, ...), which may be memory-mapped."""
    for start in range(0, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        yield rows, torch.from_numpy(np.array(images[rows])).to(device)
