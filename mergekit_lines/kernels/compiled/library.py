"""The compiled kernels as functions of this process: their machine code is loaded, and called."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mergekit_lines.errors import TextError
from mergekit_lines.kernels.compiled import layout as at

CODES = {torch.bfloat16: at.BF16, torch.float16: at.FP16, torch.float32: at.FP32}
NAMES = ("merge", "count", "sums", "signs", "powers")
_SCRATCH = threading.local()


class Library:
    """Machine code that was compiled for this processor.

    Args:
        code: an object file, as :mod:`~mergekit_lines.kernels.compiled.build` makes it.

    Raises:
        TextError: it lacks a kernel, or may not be run.
        RuntimeError: it is none for this processor.
    """

    def __init__(self, code: bytes) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple().create_target_machine(
            codemodel="jitdefault", jit=True
        )
        # Both live as long as the functions do.
        self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        number, address = ctypes.c_int64, ctypes.c_void_p
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, address, address, number, number)
        addresses = {name: self._engine.get_function_address(name) for name in NAMES}
        if not all(addresses.values()):
            raise TextError("the machine code lacks a kernel")
        if not all(map(may_run, addresses.values())):
            raise TextError("this system lets no process run code that it has made")
        self.sums_as_torch = True
        self._kernels = {name: kind(place) for name, place in addresses.items()}

    def call(self, name: str, integers: Sequence[int], floats: Sequence[float] = ()) -> Any:
        """Call a kernel, while other threads go on; return its result and the integers after it.

        Args:
            name: of the kernel.
            integers: as :mod:`~mergekit_lines.kernels.compiled.layout` has them.
            floats: likewise; rounded to fp32.

        Raises:
            RuntimeError: the kernel failed, which none can.
        """
        ints = (ctypes.c_int64 * len(integers))(*integers)
        numbers = (ctypes.c_float * len(floats))(*floats)
        result, failure = ctypes.c_int64(), ctypes.c_void_p()
        status = self._kernels[name](
            ctypes.byref(result),
            ctypes.byref(failure),
            ctypes.addressof(ints),
            ctypes.addressof(numbers),
        )
        if status:
            raise RuntimeError(f"the compiled kernel {name} ended with status {status}")
        return result.value, ints


def may_run(address: int) -> bool:
    """Tell whether the memory at an address may be executed; True where no one says.

    LLVM does not notice where a hardened system refuses it that, and the first call would end the
    process.
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    for line in maps.splitlines():
        bounds, rights, *_ = line.split()
        first, end = (int(bound, 16) for bound in bounds.split("-"))
        if first <= address < end:
            return "x" in rights
    return True


def pattern(number: float) -> int:
    """Return the bit pattern of a number in fp32, from which a magnitude's place is read."""
    word: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return -1 if word < 0 else word


def scratch(name: str, entries: int) -> torch.Tensor:
    """Return so many fp32 entries, kept for this thread's next call of that name."""
    held: dict[str, torch.Tensor] = _SCRATCH.__dict__
    buffer = held.get(name)
    if buffer is None or buffer.numel() < entries:
        with torch.inference_mode(mode=False):
            buffer = held[name] = torch.empty(entries, dtype=torch.float32, device="cpu")
    return buffer if buffer.numel() == entries else buffer[:entries]
