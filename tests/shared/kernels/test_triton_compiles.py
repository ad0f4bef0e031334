"""What the interpreter does not see: that the Triton kernels compile for a GPU. It takes none to compile."""

import os
import subprocess
import sys

import pytest

CODE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from shared.kernels import histogram_triton, lncc_triton, overlap_triton, warp_triton

TENSORS = {name: "*fp32" for name in (
    "x y shifts_x shifts_y sums weight values own other shifts_own shifts_other on_cross on_var offsets "
    "maps p q p_field q_field slopes to_p to_q to_x to_y image field grad out").split()}
TENSORS |= {"p_filled": "*i64", "q_filled": "*i64"}
SLIDE = {"RADIUS": 4, "STRETCH": 32, "BLOCK": 256}
CELLS = {"CELL": 8, "CHANNELS": 64}

def build(kernel, constants, **other):
    types = {**TENSORS, **other, **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    triton.compile(ASTSource(kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__)

build(lncc_triton._moments, SLIDE)
build(lncc_triton._plane_sums, SLIDE)
build(lncc_triton._correlate, {**SLIDE, "EPS": 1e-5, "FLAT": 1e-6, "TO_X": True, "TO_Y": True})
build(lncc_triton._correlate, {**SLIDE, "EPS": 1e-5, "FLAT": 1e-6, "TO_X": False, "TO_Y": False})
build(lncc_triton._gradient, SLIDE)
build(histogram_triton._count, {"K": 2.0, "REACH": 3, "STRETCH": 4096, "TILE": 32, "BINS": 32})
build(histogram_triton._pull, {"K": 2.0, "REACH": 3, "BLOCK": 256})
for dims in (2, 3):
    build(overlap_triton._fill, {**CELLS, "VOXELS": 8**dims, "CELLS": 4096 // 8**dims}, out="*i64")
    for adjoint in (False, True):
        moves = {"P_MOVES": True, "Q_MOVES": not adjoint, "ADJOINT": adjoint}
        build(overlap_triton._overlap, {**CELLS, **moves, "DIMS": dims, "BLOCK": 256})
    sampled = {"DIMS": dims, "BORDER": True, "BLOCK": 256}
    build(warp_triton._sample, {**sampled, "NEAREST": False, "ADD": True})
    build(warp_triton._field_adjoint, {**sampled, "ADD": True})
    build(warp_triton._image_adjoint, {**sampled, "NEAREST": False})
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    pytest.importorskip("triton", minversion="3.3", reason="no Triton that compiles by itself")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", CODE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 19
