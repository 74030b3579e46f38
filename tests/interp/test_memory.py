"""What is freed goes back to the system, by glibc's own count of its regions; and garbage in a settled heap."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp import load, memory
from interp.memory import freed_at_once, settled_heap, spare_memory

N = 6 * 2**20
"""Of 24 MB: less than what glibc maps on its own after it has freed larger ones, more than any hole in its heaps."""
FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def mapped_regions() -> int:
    """Arrays that are mapped on their own."""
    call = ctypes.CDLL(None).mallinfo2
    call.restype = MallocInfo
    return int(call().hblks)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or newer")
def test_large_arrays_are_mapped_on_their_own_inside(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("llama"))
    assert spare_memory(model) == memory.SMALLEST
    monkeypatch.setattr(memory, "SMALLEST", 0)
    with freed_at_once(model):
        before = mapped_regions()
        array = torch.empty(N)
        assert mapped_regions() == before + 1
        del array
        assert mapped_regions() == before
    kept = torch.empty(N)
    assert mapped_regions() == before
    del kept


def test_what_a_command_settled_is_still_freed_at_its_end() -> None:
    """Extensions report what is not as leaks, on the last lines that a user reads."""
    script = """
from interp.memory import settle_heap

class Held:
    def __del__(self):
        print("freed")

held = Held()
held.itself = held
settle_heap()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "freed\n"


def test_garbage_from_before_is_not_kept_by_a_settled_heap() -> None:
    freed = []

    class Held:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            freed.append(self)

    Held()
    with settled_heap():
        assert len(freed) == 1
