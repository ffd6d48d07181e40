"""The kernels as one file of machine code, made in a process of its own.

The process that merges never imports numba: it takes half a second and some tens of megabytes,
and whatever fails here is no failure there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba import types

from mergekit_lines.kernels.compiled.counts import count, signs, sums
from mergekit_lines.kernels.compiled.merges import merge
from mergekit_lines.kernels.compiled.powers import powers

ARGUMENTS = (types.int64, types.int64)


def machine_code() -> bytes:
    """Return an object file with the functions that :mod:`library` names.

    Each is as numba calls it: of the address of the result, that of an exception, and the two
    arguments; it returns 0.
    """
    whole: Any = None
    kernels = {"merge": merge, "count": count, "sums": sums, "signs": signs, "powers": powers}
    for name, kernel in kernels.items():
        kernel.compile(ARGUMENTS)
        module = llvm.parse_assembly(kernel.inspect_llvm(ARGUMENTS))
        module.get_function(kernel.overloads[ARGUMENTS].fndesc.llvm_func_name).name = name
        if whole is None:
            whole = module
        else:
            whole.link_in(module)
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )
    # Once for all of them: numba would optimise each function by itself, and again where it is
    # called, which takes two seconds longer and comes to the same.
    settings = llvm.create_pipeline_tuning_options(speed_level=3)
    settings.loop_vectorization, settings.slp_vectorization = True, False
    passes = llvm.create_pass_builder(target, settings)
    passes.getModulePassManager().run(whole, passes)
    code: bytes = target.emit_object(whole)
    return code


def write(file: str) -> None:
    """Write the object file."""
    Path(file).write_bytes(machine_code())
