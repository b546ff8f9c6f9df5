"""csrc/philox.h by itself, as each compiler sees it.

C++, the same compiler with the names that nvcc defines, and the host side of nvcc.

``test_philox.py`` judges the compiled module and the torch twin by the same published vectors.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import philox
from tests.ops.known_answers import KNOWN_ANSWERS

HEADER_FOLDER = Path(__file__).resolve().parents[2] / "csrc"
CXX = shlex.split(os.environ.get("CXX", "")) or ["g++"]

PROGRAM = """
#include "philox.h"

extern "C" void block(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
  const metacurv::PhiloxBlock result = metacurv::philox4x32_10(
      {{counter[0], counter[1], counter[2], counter[3]}}, {{key[0], key[1]}});
  for (int w = 0; w < metacurv::kBlockWords; ++w) {
    out[w] = result.word[w];
  }
}

extern "C" void signs(uint64_t seed, uint32_t number, uint32_t probe, uint64_t index,
                      uint32_t* out) {
  const metacurv::PhiloxBlock result =
      metacurv::sign_block(metacurv::sign_stream(seed, number, probe), index);
  for (int w = 0; w < metacurv::kBlockWords; ++w) {
    out[w] = result.word[w];
  }
}
"""

# What nvcc defines before it reads the header, for a compiler that knows none of it.
CUDA_SPELLING = ["__CUDACC__=1", "__host__=", "__device__=", "__forceinline__=inline"]

COMPILERS = {
    "C++": [*CXX, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-x", "c++"],
    "CUDA spelling": [
        *CXX,
        *("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-x", "c++"),
        *(f"-D{macro}" for macro in CUDA_SPELLING),
    ],
    "nvcc": ["nvcc", "-shared", "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror", "-x", "cu"],
}


@pytest.fixture(scope="module", params=COMPILERS)
def library(request, tmp_path_factory) -> ctypes.CDLL:
    """The program above, compiled; the host side of it, where the compiler has two sides."""
    command = COMPILERS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on PATH")
    if not (HEADER_FOLDER / "philox.h").is_file():
        pytest.skip(f"{HEADER_FOLDER} holds no philox.h: these tests need the source tree")
    folder = tmp_path_factory.mktemp("philox")
    source, built = folder / "philox.cpp", folder / "philox.so"
    source.write_text(PROGRAM)
    done = subprocess.run(
        [*command, "-std=c++17", f"-I{HEADER_FOLDER}", str(source), "-o", str(built)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = ctypes.CDLL(str(built))
    words = ctypes.POINTER(ctypes.c_uint32)
    loaded.block.argtypes = [words, words, words]
    loaded.block.restype = None
    loaded.signs.argtypes = [
        *(ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64),
        words,
    ]
    loaded.signs.restype = None
    return loaded


def words(*values: int) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(values))(*values)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(library, counter, key, output):
    result = words(0, 0, 0, 0)
    library.block(words(*counter), words(*key), result)
    assert tuple(result) == output


@pytest.mark.parametrize("index", [0, 1, 2**32 - 1, 2**32, 2**55 + 12345])
@pytest.mark.parametrize("seed", [0, 2**32 + 7, 2**64 - 1])
def test_counter_and_key_of_a_sign_block(library, seed, index):
    """key: halves of the seed; counter: halves of the block number, parameter and probe number."""
    result = words(0, 0, 0, 0)
    library.signs(seed, 3, 2**32 - 1, index, result)
    expected = philox((index % 2**32, index >> 32, 3, 2**32 - 1), (seed % 2**32, seed >> 32))
    assert tuple(result) == expected
