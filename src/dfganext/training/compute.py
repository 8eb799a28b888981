"""Device and precision, and repeatable algorithms."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

import torch

from dfganext.errors import UserError
from dfganext.settings import Machine


def device(setting: str) -> torch.device:
    """auto, cpu or cuda -> a device. UserError if the setting is cuda and there is no CUDA device."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device is cuda, but PyTorch sees no CUDA device; set it to auto or cpu.")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def precision(setting: str, device: torch.device) -> torch.dtype:
    """auto -> bfloat16 if the device multiplies it in hardware, float32 otherwise."""
    if setting != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def name_of(precision: torch.dtype) -> Literal["float32", "bfloat16"]:
    """The name of a precision in the settings."""
    return "bfloat16" if precision == torch.bfloat16 else "float32"


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """A context in which PyTorch computes in `precision` where it considers that safe."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def resolve(machine: Machine, setting: str) -> tuple[Machine, Literal["float32", "bfloat16"]]:
    """Replace `auto` by what it means on this machine, for the device and for the precision.

    Args:
        setting: the precision: auto, float32 or bfloat16.

    Returns:
        `machine` with the device cpu or cuda, and float32 or bfloat16.
    """
    resolved = device(machine.device)
    return replace(machine, device="cuda" if resolved.type == "cuda" else "cpu"), name_of(precision(setting, resolved))


def make_repeatable() -> None:
    """Make PyTorch use only algorithms that give the same bits every time; operations without one raise RuntimeError."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code here reads uninitialised memory
    torch.backends.cudnn.benchmark = False
