"""The ops of metacurv, each as a compiled kernel and as a twin in plain torch, behind one checked function.

Random signs follow one contract (``csrc/philox.h``): element ``i`` of parameter ``number`` in probe ``probe`` under ``seed`` is
+1 or -1 by one bit of a Philox4x32-10 block, whatever the device, dtype, thread count or sharding. These arguments mean the
same in every op:

- ``seed``: int in [0, 2^64).
- ``probe``: int in [0, 2^32), or a 0-dim int64 tensor on the tensors' device, read modulo 2^32 when the op runs, so that a
  captured CUDA graph can advance it.
- ``numbers``: the parameter number of each tensor, ints in [0, 2^32); by default 0, 1, 2, ...
- ``offsets``: the index of each tensor's first element in its unsharded parameter, ints >= 0; by default 0.
- ``backend``: "native" runs the compiled op and raises an error where there is none; "reference" runs the torch twin; "auto"
  runs the compiled op where it was built for the tensors' device, else the twin.

The generator is that of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
"""

from metacurv.ops.backend import as_int64, implementation
from metacurv.ops.probes import hutchinson_accumulate_, rademacher_, signed_sum
from metacurv.ops.rates import reciprocal_lr_

__all__ = [
    "as_int64",
    "hutchinson_accumulate_",
    "implementation",
    "rademacher_",
    "reciprocal_lr_",
    "signed_sum",
]
