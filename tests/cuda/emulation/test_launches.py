"""The launch code: how lists are cut into launches, and what is refused; and the emulator itself, which must see faults."""

from __future__ import annotations

import pytest
import torch

from metacurv.ops.backend import TWINS as twin
from tests.cuda.emulation.emulated import EmulatedOps, schemas, unwritten_zeros, whole_numbers

SEED, PROBE = 0, torch.tensor(0)
TILE = 16384


def signed_sum(emulated: EmulatedOps, tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Its launches."""
    emulated.launches()
    emulated.signed_sum(tensors, SEED, PROBE, list(range(len(tensors))), [0] * len(tensors))
    return emulated.launches()


def test_the_schemas_are_found() -> None:
    assert len(schemas()) >= 14
    assert schemas()["reciprocal_lr_"].startswith("reciprocal_lr_(Tensor(a!) scale")


def test_a_block_for_every_tile_and_one_that_finishes(emulated: EmulatedOps) -> None:
    finish = (1, 1024)
    assert signed_sum(emulated, [torch.ones(1)]) == [(1, 128), finish]
    assert signed_sum(emulated, [torch.ones(TILE)]) == [(1, 128), finish]
    assert signed_sum(emulated, [torch.ones(TILE + 1)]) == [(2, 128), finish]
    assert signed_sum(emulated, [torch.ones(1), torch.ones(0), torch.ones(3)]) == [(2, 128), finish]
    assert signed_sum(emulated, []) == []
    assert signed_sum(emulated, [torch.ones(0)]) == [finish]


def test_tables_hold_sixty_tensors_and_ninety_six_dimensions(emulated: EmulatedOps) -> None:
    assert signed_sum(emulated, [torch.ones(3)] * 60) == [(60, 128), (1, 1024)]
    assert signed_sum(emulated, [torch.ones(3)] * 61) == [(60, 128), (1, 128), (1, 1024)]
    strided = torch.ones(2, 3, 4).permute(2, 0, 1)  # two dimensions once (0, 1) have merged
    assert signed_sum(emulated, [strided] * 49) == [(48, 128), (1, 128), (1, 1024)]


def test_a_tile_belongs_to_the_whole_parameter(emulated: EmulatedOps) -> None:
    """Two elements on both sides of a tile's edge are two tiles."""
    emulated.launches()
    emulated.rademacher_([torch.ones(2)], SEED, PROBE, [0], [TILE - 1])
    assert emulated.launches() == [(2, 128)]


def test_more_tensors_than_one_finish_takes(emulated: EmulatedOps) -> None:
    tables, finish = [(60, 128)] * 16, (1, 1024)
    assert signed_sum(emulated, [torch.ones(1)] * 960) == [*tables, finish]
    assert signed_sum(emulated, [torch.ones(1)] * 961) == [*tables, (1, 128), finish, finish]


def test_strided_tensors_of_2_to_32_elements_are_cut(emulated: EmulatedOps) -> None:
    """The kernels divide in 32 bits; halves of the first dimension fit."""
    emulated.launches()
    with pytest.raises(RuntimeError, match="tiles of 16384 elements in one call"):
        emulated.signed_sum([torch.ones(1, 1).expand(2**23, 2**23)], SEED, PROBE, [0], [0])
    assert emulated.launches() == []  # refused before anything ran


def test_both_parts_of_a_cut_tensor_are_where_they_belong(emulated: EmulatedOps) -> None:
    """Every second of 2^33 + 16 elements: 16 GiB of addresses, of which the blocks that run touch a little."""
    first_tile, tail_begin = 11, 2**31 + 4  # the tensor begins in that tile of its parameter
    x = torch.empty(2**33 + 16, dtype=torch.bfloat16)[::2]
    offset = first_tile * TILE + TILE // 2
    # Half a tile, whole ones, half a tile and four elements; the tail begins with the rest of that tile.
    tiles = (tail_begin + TILE // 2) // TILE + 1
    emulated.launches()
    with emulated.only_blocks([0, tiles - 1, tiles, 2 * tiles - 1]):
        emulated.rademacher_([x], SEED, PROBE, [3], [offset])
    assert emulated.launches() == [(2 * tiles, 128)]
    for begin, end in (
        (0, TILE // 2),
        (tail_begin - 100, tail_begin + 100),
        (x.numel() - 8, x.numel()),
    ):
        expected = torch.empty(end - begin, dtype=x.dtype)
        twin.rademacher_([expected], SEED, PROBE, [3], [offset + begin])
        assert torch.equal(x[begin:end], expected), begin


def test_a_cut_that_leaves_one_row(emulated: EmulatedOps) -> None:
    """Of three rows that are far apart, the first by itself, the other two cut again: without a dimension of 1."""
    cols, gap = 2**31 + 8, 2**20
    memory = unwritten_zeros(2 * (cols + gap) + cols, dtype=torch.bfloat16)
    rows = memory.as_strided((3, cols), (cols + gap, 1))
    tiles = [-(-cols // TILE)]  # of the first row; the others begin inside a tile
    tiles += [((row + 1) * cols - 1) // TILE - row * cols // TILE + 1 for row in (1, 2)]
    ends = [n for row in range(3) for n in (sum(tiles[:row]), sum(tiles[: row + 1]) - 1)]
    emulated.launches()
    with emulated.only_blocks(ends):
        emulated.rademacher_([rows], SEED, PROBE, [3], [0])
    assert emulated.launches() == [(sum(tiles), 128)]
    for row in range(3):
        for begin in (0, cols - 8):
            expected = torch.empty(8, dtype=rows.dtype)
            twin.rademacher_([expected], SEED, PROBE, [3], [row * cols + begin])
            assert torch.equal(rows[row, begin : begin + 8], expected), (row, begin)
        assert not memory[row * (cols + gap) + cols :][:8].any()  # the gap


def test_probes_beyond_2_to_32_elements(emulated: EmulatedOps) -> None:
    """Without strides nothing is cut: places in the tensor, too, take more than 32 bits."""
    # The last warp's part begins before place 2^32 and ends after it.
    numel, offset = 2**32 + 1003, 2048
    x = unwritten_zeros(numel, dtype=torch.bfloat16)
    tiles = 2**32 // TILE + 1
    with emulated.only_blocks([tiles - 2, tiles - 1]):
        emulated.rademacher_([x], SEED, PROBE, [3], [offset])
    signs = torch.empty(5000, dtype=torch.bfloat16)
    twin.rademacher_([signs], SEED, PROBE, [3], [offset + numel - len(signs)])
    assert torch.equal(x[-len(signs) :], signs)
    assert not x[:TILE].any()
    with emulated.only_blocks([0, tiles - 2, tiles - 1]):  # 0 adds the partial sums
        (total,) = emulated.signed_sum([x], SEED, PROBE, [3], [offset])
    assert total == TILE + offset + 1003


@pytest.mark.parametrize("long", [False, True])
def test_softmax_factor_beyond_2_to_32_elements(emulated: EmulatedOps, long: bool) -> None:
    cols = 2048 if long else 1024
    rows = 2**32 // cols + 1
    sqrt_p, root = unwritten_zeros(rows, cols), unwritten_zeros(rows)
    sqrt_p[-1], root[-1] = whole_numbers(cols, dtype=torch.float32).clamp(-1, 1), 0.5
    with emulated.only_blocks([(rows - 1) // (1 if long else 8)]):
        u = emulated.softmax_factor(sqrt_p, root, SEED, PROBE, 3, 1)
    signs = torch.empty(cols)
    twin.rademacher_([signs], SEED, PROBE, [3], [2**32])
    t = sqrt_p[-1] * signs
    assert torch.equal(u[0, -1], 0.5 * (t - t * t * t.sum()))
    assert not u[0, :2].any()


def test_row_products_of_draws_beyond_2_to_32_elements(emulated: EmulatedOps) -> None:
    """A draw is a tile: no other launch adds."""
    draws = 2**32 // 8192 + 1
    u = unwritten_zeros(draws, 8, 1024)
    w = unwritten_zeros(draws, 8, 1024)
    u[-1], w[-1] = 2, 3
    with emulated.only_blocks([0, draws - 1]):
        sums = emulated.row_products(torch.ones(8, 4), u, w)
    assert sums[0].tolist() == [0, 0]
    assert sums[-1].tolist() == [4 * 6 * 8192, 6 * 8192]


def test_row_products_of_a_draw_beyond_2_to_32_elements(emulated: EmulatedOps) -> None:
    rows, cols = 2**20 + 1, 2**12
    u = unwritten_zeros(1, rows, cols)
    u[0, -1] = 2
    a = unwritten_zeros(rows, 1)
    a[-1] = 3
    with emulated.only_blocks([0, rows // 8, 2**32 // 8192]):
        sums = emulated.row_products(a, u, u)
    assert sums.tolist() == [[9 * 4 * cols, 4 * cols]]


def test_row_products_of_inputs_beyond_2_to_32_elements(emulated: EmulatedOps) -> None:
    rows, inputs = 2**20 + 1, 2**12
    a, products = unwritten_zeros(rows, inputs), unwritten_zeros(1, rows, 1)
    a[-1], products[0, -1] = 3, 2
    with emulated.only_blocks([0, rows // 8, rows // 8192]):
        sums = emulated.row_products(a, products, products)
    assert sums.tolist() == [[9 * 4 * inputs, 4]]


def test_nothing_to_fill_launches_nothing(emulated: EmulatedOps) -> None:
    emulated.launches()
    emulated.rademacher_([], SEED, PROBE, [], [])
    emulated.rademacher_([torch.ones(0)], SEED, PROBE, [0], [0])
    assert emulated.launches() == []


def test_softmax_factor_takes_a_warp_or_a_block_a_row(emulated: EmulatedOps) -> None:
    def launches(rows: int, cols: int) -> list[tuple[int, int]]:
        emulated.launches()
        emulated.softmax_factor(torch.ones(rows, cols), torch.ones(rows), SEED, PROBE, 0, 2)
        return emulated.launches()

    assert launches(16, 2047) == [(4, 256)]
    assert launches(17, 2047) == [(5, 256)]
    assert launches(17, 2048) == [(34, 256)]
    assert launches(0, 3) == launches(3, 0) == []


def test_row_products_takes_up_to_three_launches(emulated: EmulatedOps) -> None:
    def launches(rows: int, cols: int, draws: int = 2) -> list[tuple[int, int]]:
        products = torch.ones(draws, rows, cols)
        emulated.launches()
        emulated.row_products(torch.ones(rows, 4), products, products)
        return emulated.launches()

    assert launches(8, 5) == [(1, 256), (2, 256)]
    assert launches(9, 5) == [(2, 256), (2, 256)]
    assert launches(8, 1024) == [(1, 256), (2, 256)]
    assert launches(9, 1000) == [(2, 256), (4, 256), (2, 256)]
    assert launches(0, 5) == [(2, 256)]  # zeros, by the one that adds partial sums
    assert launches(8, 5, draws=0) == []
