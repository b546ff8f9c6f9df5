"""The launch code: how lists are cut into launches, and what is refused; and the emulator itself, which must see faults."""

from __future__ import annotations

import pytest
import torch

from tests.emulation.emulated import EmulatedOps, schemas

SEED, PROBE = 0, torch.tensor(0)
TILE = 16384


def signed_sum(emulated: EmulatedOps, tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Its launches."""
    emulated.launches()
    emulated.signed_sum(tensors, SEED, PROBE, list(range(len(tensors))), [0] * len(tensors))
    return emulated.launches()


def test_the_schemas_are_found() -> None:
    assert len(schemas()) >= 15
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
    launches = signed_sum(emulated, [torch.ones(1)] * 961)
    assert launches == [(60, 128)] * 16 + [(1, 128)] + [(1, 1024)] * 2


def test_strided_tensors_of_2_to_32_elements_are_cut(emulated: EmulatedOps) -> None:
    """The kernels divide in 32 bits; halves of the first dimension fit."""
    emulated.launches()
    with pytest.raises(RuntimeError, match="tiles of 16384 elements in one call"):
        emulated.signed_sum([torch.ones(1, 1).expand(2**23, 2**23)], SEED, PROBE, [0], [0])
    assert emulated.launches() == []  # refused before anything ran


def test_softmax_factor_takes_a_warp_or_a_block_a_row(emulated: EmulatedOps) -> None:
    emulated.launches()
    for rows, cols in ((17, 2047), (17, 2048)):
        emulated.softmax_factor(torch.ones(rows, cols), torch.ones(rows), SEED, PROBE, 0, 2)
    assert emulated.launches() == [(5, 256), (34, 256)]


def test_row_products_takes_up_to_three_launches(emulated: EmulatedOps) -> None:
    emulated.launches()
    emulated.row_products(torch.ones(9, 4), torch.ones(2, 9, 5), torch.ones(2, 9, 5))
    assert emulated.launches() == [(2, 256), (2, 256)]
    emulated.row_products(torch.ones(9, 4), torch.ones(2, 9, 1000), torch.ones(2, 9, 1000))
    assert emulated.launches() == [(2, 256), (4, 256), (2, 256)]
