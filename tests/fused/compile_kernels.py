"""Compile every kernel for two GPUs, which needs none, and print what the instructions are, as JSON."""

import itertools
import json
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from polyak._backend import cuda_kernels

TYPES = {
    **dict.fromkeys(("sizes", "owner", "begin", "x_table", "u_table", "v_table", "s_table"), "*i64"),
    **dict.fromkeys(("sums", "gamma", "keep", "factor", "coefficients"), "*fp32"),
    "skip": "*i1",
}
FORMS = ("plain", "nesterov", "adjusted", "heavy_ball")
KERNELS = {
    "measure": (cuda_kernels.measure, {}),
    "scale": (cuda_kernels.scale, {}),
    "average": (cuda_kernels.average, {"AVERAGED": True, "SQUARED": False, "WITH_X": True}),
    "average and squares": (cuda_kernels.average, {"AVERAGED": True, "SQUARED": True, "WITH_X": True}),
    **{
        f"{form}{' of Adam' * divided}": (cuda_kernels.move, {"FORM": form, "DECAYED": divided, "DIVIDED": divided})
        for form, divided in (*((form, False) for form in FORMS), ("plain", True), ("heavy_ball", True))
    },
}


def instructions(name: str, dtype: tl.dtype, architecture: int) -> dict[str, int]:
    """Count the wide loads and stores, and the multiplications that are fused with an addition."""
    kernel, constants = KERNELS[name]
    constants = {"X": dtype, "U": dtype, "V": dtype, "S": tl.float32, "ACC": tl.float32, "ALIGNED": True, **constants}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    source = ASTSource(kernel, {arg: TYPES.get(arg, "constexpr") for arg in kernel.arg_names}, constexprs=constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    ptx = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]
    wide = {"loads": r"ld\.global\.v[48]", "stores": r"st\.global\.v[48]", "atomics": r"\b(atom|red)\."}
    return {what: len(re.findall(pattern, ptx)) for what, pattern in wide.items()}


if __name__ == "__main__":
    cases = itertools.product(KERNELS, (tl.float32, tl.bfloat16), (80, 90))
    print(json.dumps([[name, str(dtype), arch, instructions(name, dtype, arch)] for name, dtype, arch in cases]))
