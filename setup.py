"""Builds metacurv._C: the C++ ops always, the CUDA ops whenever nvcc is found.

Everything else about the package is in pyproject.toml. The build is steered by the environment:

METACURV_CUDA=0|1|auto      build CUDA kernels never, always, or where nvcc is found (auto)
METACURV_CUDA_ARCHS=8.0;9.0 architectures, as in TORCH_CUDA_ARCH_LIST (default: those of this
                            machine's GPUs; where none is to be seen, 8.0 and 9.0+PTX)
METACURV_REQUIRE_NATIVE=1   fail instead of falling back to pure Python
METACURV_WERROR=1           compiler warnings are errors
METACURV_DEBUG=1            assertions and debug information
METACURV_PTXAS_VERBOSE=1    print registers and spills of each CUDA kernel
CXX, MAX_JOBS, CUDA_HOME    compiler, parallel compilations, CUDA toolkit
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

from announce import announce  # noqa: E402
from build_settings import BuildSettings  # noqa: E402
from native_build import NativeBuild  # noqa: E402

sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("**/*.cpp"))
NativeBuild.settings = BuildSettings.from_env(os.environ)
setup(
    ext_modules=[
        Extension("metacurv._C", sources=sources, language="c++"),
    ],
    cmdclass={"build_ext": NativeBuild},
)
if NativeBuild.summary:
    announce(NativeBuild.summary)
