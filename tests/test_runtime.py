"""Memory and threads of a process, looked at in processes of their own."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass

import pytest

LAYERS, LAYER = 6, 16 * 2**20  # tensors alive at a time; bytes of one

PROBE = f"""
import ctypes, os, resource, sys
from dfganext import runtime as process
if sys.argv[1] == "prepared":
    process.prepare()
import torch

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # malloc.h

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]

def heap():
    function = ctypes.CDLL(None).mallinfo2
    function.restype = Heap
    return function()

torch.ones(2**20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
mapped = heap().hblkhd
for _ in range(5):
    layers = [torch.ones({LAYER} // 4) for _ in range({LAYERS})]
    total = sum(layer[0] for layer in layers)
    held = heap().hblkhd - mapped
    del layers
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(faults, held, int(total), os.environ.get("GOMP_SPINCOUNT"))
"""

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 33),
    reason="needs glibc 2.33, whose malloc can be told and asked",
)


@dataclass(frozen=True)
class Seen:
    """What a process that made and freed tensors has used."""

    faults: int  # pages that the system had to clear
    mapped: int  # bytes of living tensors outside of the heap
    spins: str


def probe(state, **environment):
    names = ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, state], env=kept | environment, capture_output=True, text=True, check=True
    )
    faults, mapped, total, spins = done.stdout.split()
    assert int(total) == LAYERS
    return Seen(int(faults), int(mapped), spins)


@glibc
def test_memory_that_was_freed_is_not_cleared_again():
    once = LAYERS * LAYER // os.sysconf("SC_PAGESIZE")
    # Five times as many if each round began anew. What glibc does alone, three to five times, differs by system.
    assert probe("prepared").faults < 2.5 * once
    assert probe("prepared", THP_MEM_ALLOC_ENABLE="0").faults < 2.5 * once  # without large pages


@glibc
def test_a_tuned_malloc_stays_as_it_is():
    assert probe("prepared").mapped == 0
    assert probe("prepared", MALLOC_MMAP_THRESHOLD_="65536").mapped > LAYERS * LAYER
    assert probe("prepared", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=65536").mapped > LAYERS * LAYER


@pytest.mark.skipif(platform.system() != "Linux", reason="libgomp is what PyTorch uses on Linux")
def test_what_the_user_has_set_stays():
    assert probe("prepared", GOMP_SPINCOUNT="7").spins == "7"
    assert probe("prepared").spins == "3000"
