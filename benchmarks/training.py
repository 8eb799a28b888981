"""Epochs of training, with this project's loop and with a PyTorch loop as an expert writes it; on a CPU and on a GPU.

Both train the same network on the same images with the same augmentation and optimiser, in as many loader workers, from images
decoded once: channels_last, bfloat16 where the processor has it, fused AdamW with a constant learning rate, images normalised on
the device. Neither is compiled. Ours reads a memory-mapped array, theirs one in memory. Each runs in a process of its own. What differs is how ours
keeps freed memory and lets idle threads sleep (`dfganext.runtime`), and that ours is repeatable: only deterministic algorithms,
and a seed for each image and epoch. Before the clock starts, one step without augmentation must leave both with the same loss.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, get_worker_info

from benchmarks import pictures
from benchmarks.harness import ROOT, Child, peak_mib, shipped_but
from dfganext import images, settings
from dfganext.data.arrays import Images
from dfganext.models import classifier
from dfganext.runtime import cores
from dfganext.settings import Convnext
from dfganext.training import augment, compute, loop
from dfganext.training.classifier import ClassifierTask, training_state

SOURCE = 256
"""Pixels a side of the files, as of the paper's data set."""

CHECKED, SAME = 16, 0.02
"""Images of the step that is compared, and how far the two losses may be apart: bfloat16 has three digits."""

AUGMENTATIONS = [
    name
    for name in settings.flatten(settings.load_settings(ROOT / "params.yaml"))
    if name.startswith("convnext.augment.") and not name.endswith((".range", ".crop"))
]

_state: dict[str, Any] = {}

peak = peak_mib
"""For the children, which call functions of this module."""


def write_files(folder: Path, count: int, distinct: int = 256) -> None:
    """JPEG files to train on."""
    pictures.folder_of(folder, count, SOURCE, "JPEG", distinct)


class Epochs(NamedTuple):
    """Seconds of each epoch but the first, which warms up: ours, the rival's, ours spent waiting for the loader, and of as many
    steps on a batch in memory."""

    ours: list[float]
    rival: list[float]
    waited: list[float]
    resident: list[float]


def in_turns(folder: str, size: int, batch_size: int, device: str, rounds: int, architecture: str) -> Epochs:
    """Epochs over the files of a folder, with both loops in turns."""
    changes: dict[str, Any] = {"convnext.architecture": architecture, "convnext.size": size, "machine.device": device}
    changes |= {"convnext.batch_size": batch_size, "convnext.schedule": "step", "machine.workers": cores()}
    found = Epochs([], [], [], [])
    with Child("benchmarks.training") as ours, Child("benchmarks.training", plain=True) as rival:
        assert_same_training(ours, rival, folder, changes)
        ours.call("prepare_ours", folder, changes, None)
        rival.call("prepare_rival", folder, changes, None)
        for number in range(rounds + 1):
            epoch = ours.call("epoch_ours", number)
            other = rival.call("epoch_rival", number)
            measured = (epoch["seconds"], other["seconds"], epoch["waited"], ours.call("steps_ours", number))
            if number:
                for values, value in zip(found, measured, strict=True):
                    values.append(value)
    return found


def assert_same_training(ours: Child, rival: Child, folder: str, changes: dict[str, Any]) -> None:
    """Both losses agree after one step on the same few images without augmentation, and the step changed them."""
    changes = changes | dict.fromkeys(AUGMENTATIONS, 0) | {"convnext.batch_size": CHECKED}
    ours.call("prepare_ours", folder, changes, CHECKED)
    rival.call("prepare_rival", folder, changes, CHECKED)
    before = ours.call("loss_ours"), rival.call("loss_rival")
    ours.call("epoch_ours", 0)
    rival.call("epoch_rival", 0)
    after = ours.call("loss_ours"), rival.call("loss_rival")
    for one, other in (before, after):
        assert abs(one - other) <= SAME, f"losses differ: {before} before a step, {after} after it"
    assert abs(before[0] - after[0]) > 2 * SAME, f"a step did not change the loss: {before}, {after}"


def settings_with(changes: dict[str, Any]) -> tuple[Convnext, settings.Machine]:
    """The shipped settings with some changed."""
    loaded = settings.from_mapping(shipped_but(changes))
    return loaded.convnext, loaded.machine


def files_of(folder: str, first: int | None) -> list[Path]:
    """Files of both classes in turns; the first of them, or all."""
    return sorted(Path(folder).rglob("*.jpeg"), key=lambda file: file.name)[:first]


def prepare_ours(folder: str, changes: dict[str, Any], first: int | None) -> None:
    """Decode the first files of a folder, or all, once, as stage `resize` does, and build the task."""
    convnext, machine = settings_with(changes)
    files = files_of(folder, first)
    stored = Path(folder) / f"{convnext.size}-{len(files)}.npy"
    pixels = [images.prepare(images.decode(file.read_bytes()), convnext.size) for file in files]
    np.save(stored, np.stack(pixels))
    split = Images(
        np.load(stored, mmap_mode="r"), labels_of(files), [file.name for file in files], np.arange(len(files))
    )
    compute.make_repeatable()
    task = ClassifierTask(split, split, convnext, "ce", 0, machine)
    load_epoch = task.loader.epoch

    def timed(epoch: int) -> Iterator[Any]:
        _state["waited"] = 0.0
        yield from waiting_for(load_epoch(epoch))

    task.loader.epoch = timed  # type: ignore[method-assign]
    _state["task"], _state["state"] = task, training_state(task.model, convnext, task.loader.steps)


def loss_ours() -> float:
    """Mean loss of all images as they are stored."""
    return float(_state["task"].validate(_state["task"].model)["loss"])


def epoch_ours(number: int) -> dict[str, float]:
    """Seconds of an epoch; how many of them passed in waiting for the loader; processor time of this process, and in the kernel."""
    task = _state["task"]
    start, before = time.perf_counter(), os.times()
    loop.train_epoch(task, _state["state"], number)
    synchronise(task.device)
    seconds, after = time.perf_counter() - start, os.times()
    system = after.system - before.system
    return {
        "seconds": seconds,
        "waited": _state["waited"],
        "system": system,
        "cpu": system + after.user - before.user,
    }


def steps_ours(number: int) -> float:
    """Seconds of an epoch's steps on a batch that is already in memory: the limit for any loader."""
    task, optimizer = _state["task"], _state["state"].optimizer
    batch, *_ = task.loader.epoch(number)
    task.model.train()
    synchronise(task.device)
    start = time.perf_counter()
    for _ in range(task.loader.steps):
        optimizer.zero_grad(set_to_none=True)
        for loss, _output in task.losses(batch):
            loss.backward()
        optimizer.step()
    synchronise(task.device)
    return (time.perf_counter() - start) * task.loader.images / (task.loader.steps * len(batch.labels))


class CachedImages(Dataset[tuple[torch.Tensor, int]]):
    """Decoded images in memory, augmented each time they are asked for: uint8 (size, size, 3) and the label."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = self.transform(image=self.pixels[row])["image"]
        return torch.from_numpy(np.ascontiguousarray(image)), int(self.labels[row])


def seed_worker(worker: int) -> None:
    """Give each worker of a loader a random stream of its own: albumentations' forked workers draw the same one otherwise."""
    information = get_worker_info()
    augment.set_seed(information.dataset.transform, information.seed)  # type: ignore[union-attr]


def prepare_rival(folder: str, changes: dict[str, Any], first: int | None) -> None:
    """A PyTorch loop as an expert writes it, on the first files of a folder, or on all."""
    convnext, machine = settings_with(changes)
    model, config = classifier.build(convnext.architecture, "ce", convnext.size, seed=0)
    device = compute.device(machine.device)
    model = model.to(device).to(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    files = files_of(folder, first)
    pixels = np.stack([decoded_by_pillow(file, convnext.size) for file in files])
    data = CachedImages(pixels, labels_of(files), augment.compose(convnext.augment, convnext.size))
    loader = DataLoader(
        data,
        convnext.batch_size,
        shuffle=True,
        num_workers=machine.workers,
        worker_init_fn=seed_worker,
        pin_memory=device.type == "cuda",
        persistent_workers=machine.workers > 0,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=convnext.lr, weight_decay=convnext.weight_decay, fused=True)
    precision = compute.precision(convnext.precision, device)
    mean, std = (255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (config.mean, config.std))
    _state.update(model=model, loader=loader, optimiser=optimiser, device=device, precision=precision)
    _state.update(data=data, mean=mean, std=std)


def decoded_by_pillow(file: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3)."""
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    return np.asarray(rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.LANCZOS))


def epoch_rival(number: int) -> dict[str, float]:
    """Seconds of an epoch, and how many of them passed in waiting for the loader."""
    optimiser, device = _state["optimiser"], _state["device"]
    torch.manual_seed(number)
    _state["model"].train()
    _state["waited"] = 0.0
    start = time.perf_counter()
    for images_, labels in waiting_for(_state["loader"]):
        optimiser.zero_grad(set_to_none=True)
        rival_loss(images_, labels).backward()
        optimiser.step()
    synchronise(device)
    return {"seconds": time.perf_counter() - start, "waited": _state["waited"]}


def rival_loss(batch: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of uint8 images (N, H, W, 3), which are normalised on the device, in channels_last."""
    device, precision = _state["device"], _state["precision"]
    batch, labels = batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    pixels = (batch.permute(0, 3, 1, 2).float() - _state["mean"]) / _state["std"]
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        return F.cross_entropy(_state["model"](pixels), labels)


@torch.no_grad()
def loss_rival() -> float:
    """Mean loss of all images as they are stored."""
    _state["model"].eval()
    data = _state["data"]
    return float(rival_loss(torch.from_numpy(data.pixels), torch.from_numpy(data.labels)))


def waiting_for(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; adds the time until each is there to `waited`."""
    start = time.perf_counter()
    for batch in batches:
        _state["waited"] += time.perf_counter() - start
        yield batch
        start = time.perf_counter()


def labels_of(files: list[Path]) -> np.ndarray:
    return np.array([int(file.parent.name == "fake") for file in files], np.int64)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
