"""Laws of nf4.py: 4-bit weights are what they stand for on every processor, whatever their shape."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from emotune.models import nf4

modules = pytest.importorskip("bitsandbytes.nn.modules", reason="needs bitsandbytes")
# What a process prints that imports bitsandbytes, as peft does, where the processor has AVX512-BF16, whatever that of
# this machine has.
IMPORTS_IT = """
import ctypes

load = ctypes.cdll.LoadLibrary

def load_for_another_processor(path):
    library = load(path)
    library.has_avx512bf16_cpu = lambda: True
    return library

ctypes.cdll.LoadLibrary = load_for_another_processor

import emotune
from bitsandbytes.nn.modules import has_avx512bf16

assert has_avx512bf16()
"""


@pytest.fixture(params=[True, False], ids=["with AVX512-BF16", "without"])
def avx512_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has the instructions for which weights are repacked, and one that has not."""
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: request.param)


def layer(rows: int, columns: int, dtype: torch.dtype) -> Any:
    """A 4-bit layer on the CPU, whose rows are each much larger than the one before."""
    torch.manual_seed(7)
    weights = torch.randn(rows, columns, dtype=dtype) * (1 + torch.arange(rows)[:, None]).to(dtype)
    made = modules.Linear4bit(columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4")
    made.weight = modules.Params4bit(weights, requires_grad=False, quant_type="nf4", module=made).to("cpu")
    return made


def numbers(made: Any) -> torch.Tensor:
    """What its weights stand for, by the definition of nf4: a number of the code by 4 bits, times its block's scale."""
    from bitsandbytes import functional

    state, packed = made.weight.quant_state, made.weight.data.reshape(-1).long()
    code = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[: state.shape.numel()]
    scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return (state.code[code] * scales.repeat_interleave(state.blocksize)[: len(code)]).reshape(state.shape)


@pytest.mark.usefixtures("avx512_bf16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(32, 32), (64, 32), (32, 16), (33, 48), (48, 96), (170, 64), (64, 170), (5, 160), (3, 33), (64, 64), (128, 192)],
)
def test_a_layer_computes_with_what_its_weights_stand_for(rows: int, columns: int, dtype: torch.dtype) -> None:
    made = layer(rows, columns, dtype)
    exact = numbers(made)
    nf4.compute_exactly(torch.nn.Sequential(made))
    made.eval()
    given = torch.randn(3, columns, dtype=dtype, requires_grad=True)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05 * rows}
    with torch.inference_mode():
        torch.testing.assert_close(made(given.detach()).float(), given.float() @ exact.T, **tolerance)
    # And after it was asked, its gradient is that of the same weights.
    made(given).sum().backward()
    torch.testing.assert_close(given.grad.float(), exact.sum(0).expand(3, -1), **tolerance)
    assert torch.equal(numbers(made), exact)


def test_nothing_is_said_of_a_kernel_that_nobody_asked_for() -> None:
    ended = subprocess.run([sys.executable, "-c", IMPORTS_IT], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
