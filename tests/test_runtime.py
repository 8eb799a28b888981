"""Memory and threads of a process, measured in subprocesses; ordered maps and batches."""

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from dfganext import runtime
from dfganext.runtime import batches_by_bytes, map_ordered

LAYERS, LAYER, LARGE = 6, 16 * 2**20, 48 * 2**20  # tensors alive at a time; bytes of one, below and above the threshold

PROBE = f"""
import ctypes, importlib, os, resource, sys
from dfganext import runtime
runtime.prepare(keep_all=sys.argv[1] == "keep_all", server=sys.argv[1] == "server")
library = importlib.import_module(sys.argv[3])

layer = int(sys.argv[2])

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # malloc.h

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]

def heap():
    function = ctypes.CDLL(None).mallinfo2
    function.restype = Heap
    return function()

library.ones(2**20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
mapped = heap().hblkhd
for _ in range(10):
    layers = [library.ones(layer // 4, dtype=library.float32) for _ in range({LAYERS})]
    total = sum(layer[0] for layer in layers)
    held = heap().hblkhd - mapped
    del layers
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(faults, held, int(total), os.environ.get("GOMP_SPINCOUNT"))
"""

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 33),
    reason="needs glibc 2.33, whose malloc has mallinfo2",
)


@dataclass(frozen=True)
class Usage:
    """What a process that allocated and freed tensors has used."""

    faults: int  # pages that the system cleared
    mapped: int  # bytes of live tensors outside the heap
    spin_count: str


def probe(state, layer=LAYER, library="numpy", **environment):
    """Memory of NumPy's arrays, or of tensors with library="torch", which takes longer to import."""
    names = ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, state, str(layer), library],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    faults, mapped, total, spin_count = done.stdout.split()
    assert int(total) == LAYERS
    return Usage(int(faults), int(mapped), spin_count)


@glibc
@pytest.mark.slow
def test_freed_memory_is_not_cleared_again():
    once = LAYERS * LAYER // os.sysconf("SC_PAGESIZE")
    # Ten times as many if no round reused memory; glibc's defaults give seven to ten times as many, by system.
    assert probe("prepared", library="torch").faults < 5 * once
    assert probe("prepared", library="torch", THP_MEM_ALLOC_ENABLE="0").faults < 5 * once  # without large pages


@glibc
@pytest.mark.slow
def test_blocks_above_the_threshold_are_kept_on_request():
    once = LAYERS * LARGE // os.sysconf("SC_PAGESIZE")
    assert probe("prepared", LARGE, "torch").mapped > LAYERS * LARGE
    kept = probe("keep_all", LARGE, "torch")
    assert kept.mapped == 0 and kept.faults < 5 * once


@glibc
def test_memory_that_is_kept_has_no_gaps_of_large_pages():
    code = "import os; from dfganext import runtime; runtime.prepare(keep_all={}); print(os.environ.get('THP_MEM_ALLOC_ENABLE'))"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("THP_", "MALLOC_"))}
    found = [
        subprocess.run(
            [sys.executable, "-c", code.format(kept)], env=plain, capture_output=True, text=True, check=True
        ).stdout.strip()
        for kept in (True, False)
    ]
    assert found == ["None", "1"]


@glibc
@pytest.mark.slow
def test_a_server_returns_the_memory_of_large_blocks():
    threshold = runtime.SERVER_MMAP_THRESHOLD
    assert probe("server", threshold + 2**16).mapped > LAYERS * threshold
    assert probe("server", threshold // 2, MALLOC_ARENA_MAX="1").mapped == 0


@glibc
@pytest.mark.slow
def test_malloc_settings_of_the_user_stay():
    assert probe("prepared").mapped == 0
    assert probe("prepared", MALLOC_MMAP_THRESHOLD_="65536").mapped > LAYERS * LAYER
    tunables = "glibc.malloc.mmap_threshold=65536"
    assert probe("prepared", GLIBC_TUNABLES=tunables).mapped > LAYERS * LAYER


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="libgomp is what PyTorch uses on Linux")
def test_spin_count_of_the_user_stays():
    assert probe("prepared", GOMP_SPINCOUNT="7").spin_count == "7"
    assert probe("prepared").spin_count == "3000"


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("limit", [1, 4, 100])
def test_results_come_in_the_order_of_the_items(workers, limit):
    def slow(value):
        time.sleep(0.002 * (value % 3))
        return value**2

    assert list(map_ordered(slow, range(30), workers, limit)) == [value**2 for value in range(30)]
    assert list(map_ordered(slow, [], workers, limit)) == []


def test_no_more_items_are_read_than_the_limit():
    read = []
    items = (read.append(value) or value for value in range(50))
    for taken, _ in enumerate(map_ordered(lambda value: value, items, 3, 5), 1):
        assert len(read) <= taken + 4
    assert len(read) == 50


def test_an_error_comes_at_the_place_of_its_item_and_ends_the_work():
    begun = []

    def work(value):
        begun.append(value)
        if value == 1:
            raise ValueError("one")
        return value

    results = map_ordered(work, range(1000), 1, 4)
    assert next(results) == 0
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert list(results) == [] and len(begun) <= 6


def test_batches_hold_at_most_so_many_items_and_bytes():
    generator = np.random.default_rng(0)
    for _ in range(100):
        sizes = generator.integers(0, 12, 40).tolist()
        batches = list(batches_by_bytes(sizes, int, max_items=5, max_bytes=20))
        assert [size for batch in batches for size in batch] == sizes
        for number, batch in enumerate(batches):
            assert 1 <= len(batch) <= 5 and (sum(batch) <= 20 or len(batch) == 1)
            following = batches[number + 1][0] if number + 1 < len(batches) else 100
            assert len(batch) == 5 or sum(batch) + following > 20
    assert list(batches_by_bytes([], int, 5, 20)) == []
    assert list(batches_by_bytes([99, 1, 99], int, 5, 20)) == [[99], [1], [99]]


def test_a_full_batch_is_yielded_before_the_next_item_is_read():
    read = []
    batches = batches_by_bytes((read.append(value) or value for value in range(9)), int, 2, 100)
    assert next(batches) == [0, 1] and read == [0, 1]


def test_leaving_flushes_output_and_runs_exit_functions():
    code = "import atexit; from dfganext import runtime; atexit.register(print, 'last'); print('first', end=' '); runtime.leave(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "first last\n", "")


@pytest.mark.slow
def test_a_command_whose_reader_has_stopped_ends_with_1():
    process = subprocess.Popen(["dfganext", "predict", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
