"""Every kernel compiles to machine code for cards that are not there, which finds what Triton's interpreter passes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (pip install lightsae[gpu])")
SCRIPT = """
import re
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lightsae.sae.kernels import jump_relu, sparse_products, topk

NUMBERS, TILE = ("width", "tokens", "k"), {"ROWS": 16, "COLUMNS": 128}
KERNELS = [
    (sparse_products._weighted_rows, {"BLOCK": 256}),
    (sparse_products._row_products, {"BLOCK": 1024}),
    (topk._topk_relu, {"BLOCK": 2048}),
    (jump_relu._forward, TILE),
    (jump_relu._backward, TILE | {"TILES": 16}),
    (jump_relu._counts, TILE | {"TILES": 16, "NEAR": True}),
    (jump_relu._counts, TILE | {"TILES": 16, "NEAR": False}),
]
for kernel, constants in KERNELS:
    for dtype, passes in (("*fp32", 4), ("*bf16", 2)):
        constants = constants | ({"PASSES": passes} if kernel is topk._topk_relu else {})
        signature = {}
        for name in kernel.arg_names:
            # In `row_products`, tokens are places; everywhere else their number.
            places = name in ("rows", "offsets", "indices", "latents")
            places |= name == "tokens" and kernel is sparse_products._row_products
            of_sums = name in ("threshold", "near", "found")
            signature[name] = (
                "constexpr" if name in constants else "*i64" if places else "*fp32" if of_sums
                else "fp32" if name == "half" else "i32" if name in NUMBERS else dtype
            )
        made = compile(ASTSource(fn=kernel, signature=signature, constexprs=constants),
                       target=GPUTarget("cuda", int(sys.argv[1]), 32))
        assert made.asm["cubin"], kernel
        # Whole numbers may be counted in any order, as histograms are, in a program's own memory.
        atomics = re.findall(r"\\b(?:atom|red)\\.\\S+", made.asm["ptx"])
        assert all("shared" in name and not re.search(r"\\.b?f(16|32|64)", name) for name in atomics), (kernel, atomics)
print("compiled")
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability: int, tmp_path: Path) -> None:
    """Takes some 15 seconds of one core: a compiler runs fourteen times."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "compiled\n", done.stderr[-3000:]
