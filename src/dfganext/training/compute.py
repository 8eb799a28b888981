"""Which device and which precision, and how to make both repeatable."""

from __future__ import annotations

import os

import torch

from dfganext.errors import UserError


def device(setting: str) -> torch.device:
    """auto, cpu or cuda -> a device. UserError if CUDA is asked for and there is none."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device: cuda was asked for, but PyTorch sees no CUDA device; set it to auto or cpu.")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def precision(setting: str, device: torch.device) -> torch.dtype:
    """auto -> bfloat16 where the processor multiplies it in hardware, float32 elsewhere."""
    if setting != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def make_repeatable() -> None:
    """Only algorithms that give the same bits every time; those without one raise RuntimeError."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False
