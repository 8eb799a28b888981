"""The convolutional autoencoder. It is trained on real images only and expected to reconstruct fakes worse.

The paper gives no architecture. This one has 64-32-16 channels and three poolings, so a 256-pixel image has
32 x 32 x 16 = 16,384 latent values, the dimension that the paper's Table II implies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from dfganext.errors import UserError, reason
from dfganext.models.batches import batches
from dfganext.models.folder import WEIGHTS_FILE

CHANNELS = (64, 32, 16)

BATCH_SIZE = 32
CPU_PIXELS = 8 * 256**2
"""Maximum pixels of a micro-batch on a CPU. More overflow its caches: 32 images of 256 pixels take twice as long per image."""


class Autoencoder(nn.Module):
    """Three 3x3 convolutions with ReLU and 2x2 max pooling, mirrored with nearest-neighbour upsampling and a sigmoid.

    Takes and returns float32 (N, 3, S, S) in 0...1; S is divisible by 8.
    """

    def __init__(self) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        channels = 3
        for width in CHANNELS:
            encoder += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        for width in reversed(CHANNELS):
            decoder += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)]
            channels = width
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(channels, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


def build(seed: int) -> Autoencoder:
    """An autoencoder with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder()


def micro_batch_size(size: int, batch_size: int, device: torch.device | str) -> int:
    """Images of `size` x `size` pixels to pass through the network together: on a GPU the whole batch, on a CPU perhaps fewer."""
    if torch.device(device).type != "cpu":
        return batch_size
    return max(1, min(batch_size, CPU_PIXELS // size**2))


def preprocess(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in 0...1, channels_last in memory."""
    return (images.float() / 255).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W), no copy


@torch.inference_mode()
def encode(
    model: Autoencoder, images: np.ndarray, batch_size: int = BATCH_SIZE, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Latent vectors: uint8 (N, S, S, 3) -> float32 (N, d), d = 16 (S / 8)^2, flattened from (16, S/8, S/8)."""
    encoder = model.to(device).eval().encoder
    parts = batches(images, micro_batch_size(images.shape[1], batch_size, device), device)
    return np.concatenate([encoder(preprocess(pixels)).flatten(1).cpu().numpy() for _, pixels in parts])


@torch.inference_mode()
def reconstruction_errors(
    model: Autoencoder, images: np.ndarray, batch_size: int = BATCH_SIZE, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Mean squared error over pixels and channels, on the 0...1 scale: uint8 (N, S, S, 3) -> float64 (N,)."""
    model = model.to(device).eval()
    errors = []
    for _, pixels in batches(images, micro_batch_size(images.shape[1], batch_size, device), device):
        batch = preprocess(pixels)
        errors.append((model(batch) - batch).double().square().mean(dim=(1, 2, 3)).cpu().numpy())
    return np.concatenate(errors)


def save(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the weights into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # not save_file: only its owner could read that file
    (folder / WEIGHTS_FILE).write_bytes(to_bytes({name: tensor.contiguous().cpu() for name, tensor in state.items()}))


def load(folder: Path) -> Autoencoder:
    """Read back what `save` wrote, in evaluation mode. UserError if `folder` holds no autoencoder."""
    model = Autoencoder()
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(
            f"No autoencoder can be loaded from {folder} ({reason(error)}); `dvc repro train_autoencoder` makes one."
        ) from error
    return model.eval()
