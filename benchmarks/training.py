"""Epochs of training, with this project's loop and with the loop that most projects have; on a CPU and on a GPU.

Ours: images decoded once into a memory-mapped array, channels_last, bfloat16 where the processor has it. Theirs: files decoded
anew each epoch by the loader's workers, then the same augmentation, network and optimiser. Each runs in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks import pictures
from benchmarks.harness import Child, shipped_but
from dfganext import images, settings
from dfganext.data.arrays import Images
from dfganext.models import classifier
from dfganext.settings import Convnext
from dfganext.training import augment, compute, loop
from dfganext.training.classifier import ClassifierTask

SOURCE = 256
"""Pixels a side of the files, as of the paper's data set."""

_state: dict[str, Any] = {}


def write_files(folder: Path, count: int, distinct: int = 256) -> None:
    """JPEG files to train on."""
    pictures.folder_of(folder, count, SOURCE, "JPEG", distinct)


class Epochs(NamedTuple):
    """What was measured of each epoch, but for the first, which warms up: seconds, those spent waiting, those of resident steps."""

    ours: list[float]
    theirs: list[float]
    waited: list[float]
    resident: list[float]


def in_turns(folder: str, size: int, batch_size: int, device: str, rounds: int, fast: bool) -> Epochs:
    """Epochs over the files of a folder, with both loops in turns; `fast` as in `prepare_theirs`."""
    found = Epochs([], [], [], [])
    with Child("benchmarks.training") as ours, Child("benchmarks.training", plain=True) as theirs:
        ours.call("prepare_ours", folder, size, batch_size, device)
        theirs.call("prepare_theirs", folder, size, batch_size, device, fast)
        for number in range(rounds + 1):
            epoch = ours.call("epoch_ours", number)
            rival = theirs.call("epoch_theirs", number)
            measured = (epoch["seconds"], rival["seconds"], epoch["waited"], ours.call("steps_ours", number))
            if number:
                for values, value in zip(found, measured, strict=True):
                    values.append(value)
    return found


def chosen(size: int, batch_size: int, device: str) -> tuple[Convnext, settings.Machine]:
    """The shipped settings, but for these."""
    changes = {"convnext.size": size, "convnext.batch_size": batch_size, "machine.device": device}
    loaded = settings.from_mapping(shipped_but(changes))
    return loaded.convnext, loaded.machine


def prepare_ours(folder: str, size: int, batch_size: int, device: str) -> None:
    """Decode all files once, as stage `resize` does, and build the task."""
    files = sorted(Path(folder).rglob("*.jpeg"))
    pixels = np.lib.format.open_memmap(
        Path(folder) / f"{size}.npy", mode="w+", dtype=np.uint8, shape=(len(files), size, size, 3)
    )
    for row, file in enumerate(files):
        pixels[row] = images.prepare(images.decode(file.read_bytes()), size)
    pixels.flush()
    pixels = np.load(Path(folder) / f"{size}.npy", mmap_mode="r")
    split = Images(pixels, labels_of(files), [file.name for file in files], np.arange(len(files)))
    convnext, machine = chosen(size, batch_size, device)
    compute.make_repeatable()
    task = ClassifierTask(split, split, convnext, "ce", 0, machine)
    load = task.load

    def timed(batches: list) -> Iterator[Any]:
        _state["waited"] = 0.0
        yield from waiting_for(load(batches))

    task.load = timed  # type: ignore[method-assign]
    _state["task"], _state["count"] = task, len(files)


def epoch_ours(number: int) -> dict[str, float]:
    """Seconds of an epoch, and how many of them went by waiting for the loader."""
    task = _state["task"]
    with tqdm(disable=True) as bar:
        start = time.perf_counter()
        loop.train_epoch(task, number, bar)
        synchronise(task.device)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "waited": _state["waited"]}


def steps_ours(number: int) -> float:
    """Seconds that as many steps take on one batch that is in memory already: what no loader can better."""
    task = _state["task"]
    (batch, *_) = task.load(task.batches(0)[:1])
    steps = len(task.batches(number))
    task.model.train()
    synchronise(task.device)
    start = time.perf_counter()
    for _ in range(steps):
        task.optimiser.zero_grad(set_to_none=True)
        task.loss(batch).backward()
        task.optimiser.step()
    synchronise(task.device)
    return (time.perf_counter() - start) * _state["count"] / (steps * len(batch.labels))


class Files(Dataset[tuple[torch.Tensor, int]]):
    """One image a file, decoded, resized, augmented and normalised each time it is asked for."""

    def __init__(self, files: list[Path], size: int, transform: Any, config: classifier.ClassifierConfig) -> None:
        self.files, self.size, self.transform = files, size, transform
        self.labels = labels_of(files)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[row]) as file:
            image = file.convert("RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(self.transform(image=np.array(image))["image"]).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, int(self.labels[row])


def prepare_theirs(folder: str, size: int, batch_size: int, device: str, fast: bool) -> None:
    """A plain PyTorch loop over files; `fast` adds what timm's scripts can add: mixed precision and channels_last."""
    convnext, machine = chosen(size, batch_size, device)
    model, config = classifier.build(convnext.architecture, "ce", size, seed=0)
    where = compute.device(machine.device)
    model = model.to(where)
    if fast:
        model = model.to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True
    data = Files(sorted(Path(folder).rglob("*.jpeg")), size, augment.compose(convnext.augment), config)
    loader = DataLoader(
        data,
        batch_size,
        shuffle=True,
        num_workers=machine.workers,
        pin_memory=where.type == "cuda",
        persistent_workers=fast,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=convnext.lr, weight_decay=convnext.weight_decay)
    _state.update(model=model, loader=loader, optimiser=optimiser, device=where, fast=fast)


def epoch_theirs(number: int) -> dict[str, float]:
    """Seconds of an epoch, and how many of them went by waiting for the loader."""
    model: nn.Module = _state["model"]
    optimiser, device, fast = _state["optimiser"], _state["device"], _state["fast"]
    torch.manual_seed(number)
    model.train()
    _state["waited"] = 0.0
    start = time.perf_counter()
    for pixels, labels in waiting_for(_state["loader"]):
        pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if fast:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            loss = F.cross_entropy(model(pixels), labels)
        loss.backward()
        optimiser.step()
    synchronise(device)
    return {"seconds": time.perf_counter() - start, "waited": _state["waited"]}


def waiting_for(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; the time until each is there is added up."""
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
