"""docs/guide/troubleshooting.md has an entry for every error and warning of this package and of its build.

An entry begins with the recognisable words of its messages, each on a line of its own::

    - `the graph of loss has been freed`
    - `method=... is not right for this model`

where ``...`` stands for anything. Messages of the form "NAME must be ..., got ..." say themselves what to do, and share one
entry.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/guide/troubleshooting.md"

ARGUMENT_ERROR = re.compile(r"\bmust\b.*[,;] got ", re.DOTALL)
FEWEST_LETTERS = 15  # of a quotation: shorter ones are found everywhere
WARN = {"warn_user", "warn", "add_note", "banner"}
# A placeholder, of which nothing can be known.
HOLE = "\0"
# Raised to change the way, and caught again; nobody sees them.
INTERNAL = {"NotApplicable", "NotImplementedError", "_ReadElsewhere"}
# Functions whose strings come to the user inside another message, "... is not right for this model: {reason}".
GIVE_REASONS = {"why_not", "_bends", "kinks"}
# A message that was put together elsewhere, and is handed on.
HANDED_ON = {"error", "message", "*known.args", "plan.obstacle"}


def constants_of(tree: ast.Module) -> dict[str, str]:
    """Module-level names of strings."""
    found = {}
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found.update({t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)})
    return found


def template(node: ast.expr, constants: dict[str, str]) -> str:
    """The text of a string expression, with a HOLE for what is known only when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, constants)
    if isinstance(node, ast.BinOp):
        return template(node.left, constants) + template(node.right, constants)
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    return HOLE


def called(node: ast.expr) -> str:
    """The last name of what is called: "warn" of ``warnings.warn``."""
    return ast.unparse(node).split(".")[-1]


def messages_in(source: str, warn: Collection[str] = WARN) -> Iterator[tuple[int, str]]:
    """(line, template) of every message in a module: of errors, and of calls of a name in ``warn``."""
    tree = ast.parse(source)
    constants = constants_of(tree)
    for node in ast.walk(tree):
        arguments: list[ast.expr] = []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            if called(node.exc.func) not in INTERNAL:
                arguments = node.exc.args[:1]
        elif isinstance(node, ast.Call) and called(node.func) in warn:
            arguments = node.args[:1]
        elif isinstance(node, ast.FunctionDef) and node.name in GIVE_REASONS:
            arguments = [
                inner
                for inner in ast.walk(node)
                if isinstance(inner, (ast.JoinedStr, ast.Constant))
                and inner is not getattr(node.body[0], "value", None)
                and len(template(inner, constants).replace(HOLE, "")) >= FEWEST_LETTERS
            ]
        for argument in arguments:
            if ast.unparse(argument) not in HANDED_ON:
                yield node.lineno, template(argument, constants)


def all_messages(warn: Collection[str] = WARN) -> list[tuple[str, str]]:
    """(place, template)."""
    files = [*(ROOT / "metacurv").rglob("*.py"), *(ROOT / "build_backend").glob("*.py")]
    return [
        (f"{path.relative_to(ROOT)}:{line}", message)
        for path in sorted(files)
        if "experiment" not in path.parts
        for line, message in messages_in(path.read_text(), warn)
    ]


def kernel_messages() -> list[tuple[str, str]]:
    """(file, template) of the checks in C++ and CUDA: "metacurv: ", name, " must be ..."."""
    return [
        (str(path.relative_to(ROOT)), HOLE.join(re.findall(r'"((?:[^"\\]|\\.)*)"', check)))
        for path in sorted((ROOT / "csrc").rglob("*.*"))
        for check in re.findall(r"STD_TORCH_CHECK\((.*?)\);", path.read_text(), re.DOTALL)
    ]


def quotations() -> list[str]:
    return re.findall(r"^- `([^`]+)`$", PAGE.read_text(), re.MULTILINE)


def pattern(quotation: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, quotation.split("..."))), re.DOTALL)


def is_covered(message: str, patterns: list[re.Pattern[str]]) -> bool:
    return bool(ARGUMENT_ERROR.search(message)) or any(p.search(message) for p in patterns)


def assert_have_entries(messages: list[tuple[str, str]]) -> None:
    patterns = [pattern(quotation) for quotation in quotations()]
    missing = [
        f"{place}: {message.replace(HOLE, '{}')}"
        for place, message in messages
        if not is_covered(message, patterns)
    ]
    assert not missing, f"{PAGE.relative_to(ROOT)} has no entry for\n" + "\n".join(missing)


def test_every_message_has_an_entry() -> None:
    messages = all_messages()
    assert len(messages) > 100
    assert_have_entries(messages)


def test_every_check_of_a_kernel_says_what_must_be_or_has_an_entry() -> None:
    messages = kernel_messages()
    assert len(messages) > 20
    assert_have_entries([found for found in messages if " must " not in found[1]])


def test_every_entry_is_about_a_message_that_exists() -> None:
    messages = [message for _, message in all_messages(WARN | {"print"})]
    kernels = [message for _, message in kernel_messages()]
    stale = [
        quotation
        for quotation in quotations()
        if not any(pattern(quotation).search(message) for message in (*messages, *kernels))
    ]
    assert not stale, f"nothing in the package says {stale}"


def test_quotations_are_long_enough_to_be_recognised() -> None:
    short = [q for q in quotations() if len(q.replace("...", "")) < FEWEST_LETTERS]
    assert not short


def test_reasons_are_where_this_test_looks() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "metacurv/estimators").rglob("*.py"))
    assert [name for name in GIVE_REASONS if f"def {name}(" not in sources] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise ValueError('a b')", ["a b"]),
        ("raise ValueError(f'a {x!r} b' f' c')", ["a \0 b c"]),
        ("A = 'long'\nraise ValueError(f'{A} b')", ["long b"]),
        ("A = 'long'\nraise ValueError(A)", ["long"]),
        ("raise ValueError('a ' + ('b' if c else 'd'))", ["a \0"]),
        ("warn_user('a', UserWarning)", ["a"]),
        ("raise type(error)(f'batch {i}: {error}')", ["batch \0: \0"]),
        ("raise ValueError(made())", ["\0"]),
        ("raise NotApplicable\nraise error\nraise", []),
        ("def why_not(m):\n    'Docstring of it, long.'\n    return 'a reason that is long'\n", ["a reason that is long"]),
    ],
)  # fmt: skip
def test_messages_are_found(source: str, found: list[str]) -> None:
    assert [message for _, message in messages_in(source)] == found
