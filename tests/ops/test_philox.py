"""The generator: published known-answer vectors in every implementation on the host, and the contract of probes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import metacurv
from metacurv import ops
from metacurv.ops._reference.philox import philox4x32_10
from tests.helpers import (
    BACKENDS,
    DEVICES,
    DTYPES,
    SEEDS,
    contract_signs,
    needs_native,
    philox,
    property_test,
)
from tests.ops.known_answers import KNOWN_ANSWERS


def compiled_philox(counter, key):
    return tuple(metacurv.ops._native._C.philox4x32_10(counter, key))


IMPLEMENTATIONS = [
    pytest.param(philox, id="test"),
    pytest.param(philox4x32_10, id="reference"),
    pytest.param(compiled_philox, id="native", marks=needs_native),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_known_answers(implementation, counter, key, output):
    assert implementation(counter, key) == output


@needs_native
@property_test
@given(
    st.tuples(*[st.integers(0, 2**32 - 1)] * 4),
    st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
)
def test_all_implementations_agree(counter, key):
    assert philox(counter, key) == philox4x32_10(counter, key) == compiled_philox(counter, key)


def filled(numel, *, device="cpu", dtype=torch.float32, backend, seed, probe, number=0, offset=0):
    tensor = torch.empty(numel, dtype=dtype, device=device)
    ops.rademacher_(
        [tensor], seed=seed, probe=probe, numbers=[number], offsets=[offset], backend=backend
    )
    return tensor.to("cpu", torch.int8).numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "coordinates",
    [
        {"seed": 0, "probe": 0},
        *({"seed": seed, "probe": 3} for seed in SEEDS),
        {"seed": 5, "probe": 2**32 - 1},
        {"seed": 5, "probe": 1, "number": 1},
        {"seed": 5, "probe": 1, "number": 2**32 - 1},
        {"seed": 5, "probe": 1, "offset": 5},
        {"seed": 5, "probe": 1, "offset": 127},
        {"seed": 5, "probe": 1, "offset": 2**32 - 3},  # an element index beyond 32 bits
        {
            "seed": 5,
            "probe": 1,
            "offset": 2**39 - 7,
        },  # a block number that carries into its high word
        {"seed": 5, "probe": 1, "offset": 2**61 + 12345},
    ],
    ids=str,
)
def test_signs_follow_the_contract(device, dtype, backend, coordinates):
    numel = 4001
    signs = filled(numel, device=device, dtype=dtype, backend=backend, **coordinates)
    np.testing.assert_array_equal(signs, contract_signs(numel, **coordinates))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_block_number_uses_all_64_bits(backend):
    """Elements 2^39 apart share the low word of their block number only."""
    low = filled(128, backend=backend, seed=1, probe=0, offset=0)
    high = filled(128, backend=backend, seed=1, probe=0, offset=2**39)
    assert (low != high).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("probe", [0, 5, 2**32 - 1])
def test_probe_may_be_a_tensor_read_modulo_2_to_32(backend, probe):
    expected = filled(300, backend=backend, seed=9, probe=probe)
    for written in (probe, probe + 2**32, probe - 2**32):
        as_tensor = torch.tensor(written)
        np.testing.assert_array_equal(
            filled(300, backend=backend, seed=9, probe=as_tensor), expected
        )
        assert as_tensor.item() == written


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_default_to_positions(backend):
    tensors = [torch.empty(200) for _ in range(3)]
    ops.rademacher_(tensors, seed=2, probe=4, backend=backend)
    for number, tensor in enumerate(tensors):
        np.testing.assert_array_equal(
            tensor.to(torch.int8).numpy(), contract_signs(200, seed=2, probe=4, number=number)
        )


@pytest.mark.parametrize("backend", BACKENDS)
@property_test
@given(
    numel=st.integers(1, 2000),
    cuts=st.lists(st.integers(0, 2000), max_size=5),
    offset=st.sampled_from([0, 5, 2**15 - 3, 2**39 - 7]),
)
def test_a_parameter_cut_anywhere_gets_the_same_signs(backend, numel, cuts, offset):
    """Shards with offsets, in one call, are the unsharded parameter; empty shards are allowed."""
    edges = [0, *sorted(min(cut, numel) for cut in cuts), numel]
    shards = [torch.empty(end - begin) for begin, end in itertools.pairwise(edges)]
    ops.rademacher_(
        shards,
        seed=3,
        probe=1,
        numbers=[8] * len(shards),
        offsets=[offset + begin for begin in edges[:-1]],
        backend=backend,
    )
    np.testing.assert_array_equal(
        torch.cat(shards).to(torch.int8).numpy(),
        contract_signs(numel, seed=3, probe=1, number=8, offset=offset),
    )
