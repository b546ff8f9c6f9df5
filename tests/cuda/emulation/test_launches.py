"""The launch code: how lists are cut into launches, and what is refused; and the emulator itself, which must see faults."""

from __future__ import annotations

import pytest
import torch

from metacurv.ops.backend import TWINS as twin
from tests.cuda.emulation.emulated import EmulatedOps, schemas, unwritten_zeros

SEED, PROBE = 0, torch.tensor(0)
TILE = 16384


def signed_sum(emulated: EmulatedOps, tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Its launches."""
    emulated.launches()
    emulated.signed_sum(tensors, SEED, PROBE, list(range(len(tensors))), [0] * len(tensors))
    return emulated.launches()


def test_the_schemas_are_found() -> None:
    assert len(schemas()) >= 8
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


def test_nothing_to_fill_launches_nothing(emulated: EmulatedOps) -> None:
    emulated.launches()
    emulated.rademacher_([], SEED, PROBE, [], [])
    emulated.rademacher_([torch.ones(0)], SEED, PROBE, [0], [0])
    assert emulated.launches() == []
