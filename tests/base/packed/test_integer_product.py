"""The products that are compiled for processors: all give the same bits, which are those of the formula."""

import os
import subprocess
import sys

import pytest
import torch
from numba import njit

from adapter.base.packed.integer_product import BLOCK, DOTS, GROUP, block_product
from adapter.base.packed.native import features
from adapter.base.packed.quantize import PackedLinear
from tests.base.packed.test_quantize import four_bit_weight

GROUPS = 5


def product(weight: torch.Tensor, bits: int, rows: int, dot) -> tuple[torch.Tensor, torch.Tensor]:
    """One block times `rows` rows with extreme activations, and what it should be."""
    block = block_product(rows, dot)

    @njit
    def run(*addresses):
        block(*addresses)

    torch.manual_seed(rows)
    packed = PackedLinear.pack(weight, bits)
    integers = torch.randint(-127, 128, (rows, GROUPS, GROUP), dtype=torch.int8)
    integers[0, 0], integers[-1, 1] = 127, -127
    factors = torch.rand(rows, GROUPS)
    scales = torch.stack((factors, factors * integers.sum(2)), 2)
    out = torch.empty(rows, BLOCK)
    addresses = [tensor.data_ptr() for tensor in (packed.weight, integers, scales)]
    run(bits, *addresses, GROUPS, out.data_ptr(), 4 * BLOCK)
    return out, (integers * factors[:, :, None].double()).flatten(1) @ packed.unpacked().double().T


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 8])
def test_every_instruction_set_gives_the_same_bits(bits, rows):
    weight = four_bit_weight(BLOCK, GROUPS * GROUP)
    weight[3, :GROUP] = weight[3, :GROUP].sign()  # the ends of the grid
    possible = [dot for needed, dot in DOTS.items() if needed <= features()]
    assert possible, "the last one needs nothing"
    results = []
    for dot in possible:
        out, want = product(weight, bits, rows, dot)
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-3)
        results.append(out)
    assert all(torch.equal(result, results[0]) for result in results)


SCRIPT = (
    "from adapter.base.packed.quantize import PackedLinear; import torch; torch.manual_seed(0); "
    "w = torch.randn(48, 70); w[:16] *= 1e-4; grid = torch.randint(0, 16, (48, 70)) * 0.03125 - 0.25; "
    "grid[:, ::32], grid[:, 1::32] = -0.25, 0.21875; x = torch.randn(9, 70); "
    "print([PackedLinear.pack(*of)(x).flatten().tolist() for of in ((w, 8), (w, 4, True), (grid, 4))])"
)


def output(cache, **environment) -> str:
    """What both products give in a process of their own. Some scales are subnormal."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_simplest_processor_and_a_damaged_cache_give_the_same_bits(tmp_path):
    """generic: it has neither AVX nor conversions of fp16. A file: there is no folder that can be written to."""
    expected = output(tmp_path)
    assert output(tmp_path, NUMBA_CPU_NAME="generic") == expected
    files = list(tmp_path.rglob("*.nb?"))
    assert len(files) >= 4, "an index and the code of two functions"
    for i, file in enumerate(files):
        file.write_bytes(bytes(100) if i % 2 else b"")
    assert output(tmp_path) == expected
    indexes = [file.stat().st_size for file in tmp_path.rglob("*.nbi")]
    assert all(0 < size < 100 for size in indexes), "they are empty: the next start writes all anew"
    (tmp_path / "file").touch()
    assert output(tmp_path / "file" / "cache") == expected
