"""Registers and shared memory of every kernel, compared with those that were kept: python tests/cuda/emulation/resources.py

Compiles all kernels for all architectures (a minute and a half on two cores) and prints the table. Fails where a kernel
spills registers or keeps anything on a stack, and where the table is another than the one in resources.json, which
``--update`` writes anew, with the table of docs/cuda.md. With another nvcc than the one that made it, a few registers more
or less are no failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.cuda.emulation.cuda_page import write_section
from tests.cuda.emulation.nvcc import CudaUnavailableError, Kernel, Nvcc

KEPT = Path(__file__).with_name("resources.json")
_MORE_REGISTERS, _MORE_SHARED = 8, 1024  # that another nvcc may take: registers come in eights

Table = dict[
    str, dict[str, list[int]]
]  # kernel -> architecture -> registers, bytes of shared memory


def table(kernels: dict[str, dict[str, Kernel]]) -> Table:
    """Of what ``Nvcc.cubins`` returns."""
    found: Table = {}
    for arch, named in kernels.items():
        for name, kernel in named.items():
            found.setdefault(name, {})[arch] = [kernel.registers, kernel.shared]
    return dict(sorted(found.items()))


def spilling(kernels: dict[str, dict[str, Kernel]]) -> list[str]:
    """What is wrong, a line each."""
    return [
        f"{name} on sm_{arch}: {kernel.spills} bytes of spills, {kernel.stack} bytes of stack"
        for arch, named in kernels.items()
        for name, kernel in named.items()
        if kernel.spills or kernel.stack
    ]


def differences(new: Table, kept: Table, *, same_nvcc: bool) -> list[str]:
    """What has changed too much, a line each. Architectures that this nvcc does not know are left out."""
    archs = {arch for row in new.values() for arch in row}
    found = [f"{name} is not in {KEPT.name}" for name in new.keys() - kept.keys()]
    found += [f"{name} is no longer there" for name in kept.keys() - new.keys()]
    for name in new.keys() & kept.keys():
        if same_nvcc:
            missing = sorted(new[name].keys() - kept[name].keys(), key=int)
            found += [f"{name} on sm_{arch} is not in {KEPT.name}" for arch in missing]
        for arch in sorted(archs & kept[name].keys(), key=int):
            now, before = new[name].get(arch), kept[name][arch]
            if now is None or (same_nvcc and now != before):
                jumped = True
            else:
                registers, shared = (a - b for a, b in zip(now, before, strict=True))
                jumped = registers > _MORE_REGISTERS or shared > _MORE_SHARED
            if jumped:
                found.append(f"{name} on sm_{arch}: [registers, shared bytes] {before} -> {now}")
    return sorted(found)


def markdown(rows: Table) -> str:
    """Registers by kernel and architecture, and the shared memory, which is the same on all."""
    archs = sorted({arch for row in rows.values() for arch in row}, key=int)
    lines = [
        f"| kernel | {' | '.join(f'sm_{arch}' for arch in archs)} | shared, bytes |",
        "|---|" + "---|" * (len(archs) + 1),
    ]
    for name, row in rows.items():
        registers = " | ".join(str(row[arch][0]) if arch in row else "" for arch in archs)
        shared = sorted({shared for _, shared in row.values()})
        lines.append(f"| `{name}` | {registers} | {' to '.join(map(str, shared))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help=f"write {KEPT.name} anew")
    arguments = parser.parse_args()
    try:
        nvcc = Nvcc.find()
    except CudaUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        kernels = nvcc.cubins(Path(folder), nvcc.archs)
    rows = table(kernels)
    print(f"nvcc {nvcc.toolkit.version}, registers a thread:\n\n{markdown(rows)}\n")
    wrong = spilling(kernels)
    if arguments.update:
        write_section("registers", markdown(rows))
        KEPT.write_text(
            json.dumps({"nvcc": nvcc.toolkit.version, "kernels": rows}, indent=1) + "\n"
        )
    else:
        wrong += changed(rows, nvcc)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


def changed(rows: Table, nvcc: Nvcc) -> list[str]:
    """``differences`` from the table that is kept."""
    before = kept()
    return differences(rows, before["kernels"], same_nvcc=before["nvcc"] == nvcc.toolkit.version)


def kept() -> dict[str, Any]:
    """The table under "kernels", and the version of nvcc that made it under "nvcc"."""
    content: dict[str, Any] = json.loads(KEPT.read_text())
    return content


if __name__ == "__main__":
    sys.exit(main())
