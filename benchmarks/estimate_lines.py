"""The promises about ``estimate_trace``, as lines of the table. Names here are those of ``curvature_peers``."""

from __future__ import annotations

from benchmarks.lines import Line, key

RELU = ("relu MLP, untrained", "relu MLP, trained")
TANH_UNTRAINED, TANH_TRAINED = "tanh MLP, untrained", "tanh MLP, trained"
DIGITS, CHARACTERS = "digits CNN, trained", "character transformer, trained"

HESSIAN_PROBES = (
    "plain loop",
    "is_grads_batched",
    "vmap(jvp(grad))",
    "BackPACK HVP",
    "curvlinops Hutchinson",
    "hessian-eigenthings Hutchinson",
    "asdfghjkl HVP",
    "PyHessian",
    "pytorch_optimizer",
)
HESSIAN_SKETCHES = ("curvlinops Hutch++", "curvlinops XTrace", "hessian-eigenthings Hutch++")
GGN_PROBES = (
    "plain loop, GGN",
    "vmap(jvp), GGN",
    "BackPACK GGN product",
    "curvlinops Hutchinson, GGN",
    "hessian-eigenthings Hutchinson, GGN",
)
GGN_SKETCHES = (
    "curvlinops Hutch++, GGN",
    "curvlinops XTrace, GGN",
    "hessian-eigenthings Hutch++, GGN",
)
GGN_LABELS = ("BackPACK DiagGGNMC", "NNGeometry, sampled labels", "asdfghjkl Fisher, sampled")
GGN_EXACT = ("BackPACK DiagGGNExact", "asdfghjkl Fisher, exact")
GGN_EXACT_UNTRAINED = ("NNGeometry PMatImplicit", "NNGeometry PMatDiag")  # nan later
# asdfghjkl's Fisher is wrong on convolutions.
GGN_ON_CNN = ("BackPACK DiagGGNExact", "BackPACK DiagGGNMC", "NNGeometry, sampled labels")
BY_HAND = ("activation space by hand, exact", "activation space by hand")
PER_SAMPLE = "per-sample gradients, vmap(vjp)"


def to(error: str, workload: str, other: str) -> str:
    """The name of a comparison of times to a relative standard error."""
    return key("estimate_trace", workload, f"to {error}", other)


def all_to(error: str, workloads: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(to(error, workload, other) for workload in workloads for other in others)


def is_race(line: Line) -> bool:
    """Whether a line is about times to an equal error."""
    return any(" / to " in name for name in line.keys)


def call(workload: str, method: str, other: str) -> str:
    """The name of a comparison of single calls."""
    return key("estimate_trace", workload, method, other)


def calls(method: str, others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(call(workload, method, other) for workload in RELU for other in others)


GRADIENT = "one gradient"
STEP = "in a training step"

ESTIMATE_LINES = (
    Line(
        "`exact`, ReLU MLP, untrained and trained",
        "BackPACK `DiagHessian`",
        "time",
        0.30,
        calls("exact", ("BackPACK DiagHessian",)),
    ),
    Line(
        "Hessian to 1 %, ReLU MLP, untrained and trained",
        "the best that samples it",
        "faster",
        100,
        all_to("1 %", RELU, HESSIAN_PROBES + HESSIAN_SKETCHES),
        "an exact reading takes two gradients, and sketches of the trained network's Hessian need some hundred products",
    ),
    Line(
        "Hessian to 1 %, ReLU MLP, where it is the GGN",
        "the best that samples the GGN",
        "faster",
        1,
        all_to("1 %", RELU, GGN_PROBES + GGN_SKETCHES + GGN_LABELS),
    ),
    Line(
        "Hessian to 1 %, ReLU MLP, where it is the GGN",
        "the best exact diagonal of the GGN",
        "faster",
        1,
        all_to("1 %", RELU, GGN_EXACT) + all_to("1 %", RELU[:1], GGN_EXACT_UNTRAINED),
    ),
    Line(
        "Hessian to 1 %, ReLU MLP, where it is the GGN",
        "the same in plain torch, by hand",
        "faster",
        1,
        all_to("1 %", RELU, BY_HAND),
        "by hand nothing is checked: not the graph, not the loss, not the layers",
    ),
    Line(
        "Hessian to 1 %, tanh MLP, untrained",
        "the best that samples it",
        "faster",
        20,
        all_to("1 %", (TANH_UNTRAINED,), HESSIAN_PROBES + HESSIAN_SKETCHES),
    ),
    Line(
        "Hessian to 1 %, tanh MLP, trained",
        "the best that samples it",
        "faster",
        5,
        all_to("1 %", (TANH_TRAINED,), HESSIAN_PROBES + HESSIAN_SKETCHES),
    ),
    Line(
        "Hessian to 1 %, tanh MLP, untrained and trained",
        "BackPACK `DiagHessian`, exact",
        "faster",
        1,
        all_to("1 %", (TANH_UNTRAINED, TANH_TRAINED), ("BackPACK DiagHessian",)),
    ),
    Line(
        "GGN to 2 %, CNN on digits",
        "the best, exact ones included",
        "faster",
        2,
        all_to("2 %", (DIGITS,), GGN_PROBES + GGN_SKETCHES + GGN_ON_CNN),
        "oneDNN's backward convolution of the nine columns takes 8 of 18 ms, and BackPACK's exact diagonal 30",
    ),
    Line(
        "GGN to 2 %, character transformer",
        "the best that can",
        "faster",
        5,
        all_to("2 %", (CHARACTERS,), GGN_PROBES + GGN_SKETCHES),
    ),
)

# Measured beside them, without a promise.
ALSO = all_to("2 %", (DIGITS, CHARACTERS), (PER_SAMPLE,))
