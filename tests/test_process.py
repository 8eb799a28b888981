"""Memory and threads of a process, looked at in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

PROBE = """
import os, resource, sys
from dfganext import process
if sys.argv[1] == "prepared":
    process.prepare()
import torch
torch.ones(2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    layers = [torch.ones(2**22) for _ in range(6)]  # 16 MiB each
    total = sum(layer[0] for layer in layers)
    del layers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, total.item(), os.environ.get("GOMP_SPINCOUNT"))
"""


def probe(state, **environment):
    names = ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, state], env=kept | environment, capture_output=True, text=True, check=True
    )
    faults, total, spins = done.stdout.split()
    assert float(total) == 6
    return int(faults), spins


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_memory_that_was_freed_is_not_cleared_again():
    plain, prepared = probe("plain")[0], probe("prepared")[0]
    assert plain > 4 * 6 * 4096  # each page of 4 KiB, nearly each time
    assert prepared < plain / 5


def test_what_the_user_has_set_stays():
    assert probe("prepared", GOMP_SPINCOUNT="7")[1] == "7"
    assert probe("prepared")[1] == "3000"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_a_tuned_malloc_stays_as_it_is():
    assert probe("prepared", MALLOC_MMAP_THRESHOLD_="65536", THP_MEM_ALLOC_ENABLE="0")[0] > 4 * 6 * 4096
