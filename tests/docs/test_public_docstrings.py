"""Docstrings of public names describe every argument, the result and the errors."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest

import metacurv

_SECTIONS = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|References|Examples):\n", re.MULTILINE
)


class Public:
    """A public class, function, method or property, with its docstring cut into sections."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.target = name, target
        parts = _SECTIONS.split(inspect.cleandoc(target.__doc__ or ""))
        self.sections = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function that runs when the name is called; None where Python made it."""
        if isinstance(self.target, property):
            return self.target.fget
        if inspect.isclass(self.target):
            made_by = "__post_init__" if is_dataclass(self.target) else "__init__"
            return vars(self.target).get(made_by)
        return getattr(self.target, "__func__", self.target)

    @property
    def parameters(self) -> list[str]:
        if isinstance(self.target, property) or (
            inspect.isclass(self.target) and issubclass(self.target, BaseException)
        ):
            return []
        is_class = inspect.isclass(self.target)
        found = inspect.signature(self.target.__init__ if is_class else self.target).parameters
        return [name for name in found if name not in ("self", "cls")]

    def faults(self) -> Iterator[str]:
        """Yields what the docstring lacks."""
        if not self.sections[""].strip():
            yield "has no docstring"
            return
        described = self.sections.get("Args", "") + self.sections.get("Attributes", "")
        names = re.findall(r"^    (\w+): ", described, re.MULTILINE)
        taken = self.parameters
        yield from (f"does not describe {name}" for name in taken if name not in names)
        yield from (
            f"describes {name}, which it does not take" for name in names if name not in taken
        )
        if re.search(r"^Example:", "\n".join(self.sections.values()), re.MULTILINE):
            yield "has a section Example, which Google's style calls Examples"
        if len(re.findall(r"^    \S", self.sections.get("Returns", ""), re.MULTILINE)) > 1:
            yield "has lines of Returns that are not indented, which the reference page takes for several results"
        if inspect.isroutine(self.target):
            gives = inspect.signature(self.target).return_annotation
            is_told = self.sections.keys() & {"Returns", "Yields"}
            if gives not in ("None", "Iterator[None]", inspect.Signature.empty) and not is_told:
                yield f"does not say what it returns ({gives})"
        if self.raises and "Raises" not in self.sections:
            yield "does not say what it raises"

    @property
    def raises(self) -> bool:
        """True where it raises an error itself, or has an argument checked."""
        if self.function is None or isinstance(self.target, property):
            return False
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(self.function)))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                return True
            if isinstance(node, ast.Call) and re.match(
                r"_validate\.(?!describe)", ast.unparse(node.func)
            ):
                return True
        return False


def public_names() -> Iterator[Public]:
    """Yields the callables of ``metacurv`` and ``metacurv.ops``, and what our classes define for users."""
    for module in (metacurv, metacurv.ops):
        for name in module.__all__:
            target = getattr(module, name)
            if not callable(target):
                continue
            yield Public(f"{module.__name__}.{name}", target)
            for owner in target.__mro__ if inspect.isclass(target) else ():
                if not owner.__module__.startswith("metacurv."):
                    continue
                for attribute, member in vars(owner).items():
                    is_shown = inspect.getattr_static(target, attribute) is member
                    if isinstance(member, (classmethod, staticmethod)):
                        member = getattr(owner, attribute)
                    is_ours = isinstance(member, property) or inspect.isroutine(member)
                    if is_ours and is_shown and not attribute.startswith("_"):
                        yield Public(f"{module.__name__}.{name}.{attribute}", member)


PUBLIC = list(public_names())


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.name)
def test_docstring_is_complete(public):
    assert not list(public.faults())


def test_all_kinds_of_names_are_looked_at():
    names = {public.name for public in PUBLIC}
    assert {
        "metacurv.DirectionalRule",
        "metacurv.DirectionalRule.held_out",
        "metacurv.MetaCurvatureLR",
        "metacurv.ReciprocalLR.step",
        "metacurv.ReciprocalLR.update_freq",
        "metacurv.estimate_trace",
        "metacurv.ops.signed_sum",
    } <= names


def test_faults_are_found():
    def f(a: int, b: int) -> int:
        """Adds.

        Args:
            a: a number.
            c: another.

        Example:
            >>> f(1, 2)
        """
        if b:
            raise ValueError
        return a

    def g(seed: int) -> None:
        """Checks.

        Args:
            seed: a number.
        """
        metacurv._validate.seed(seed)

    assert list(Public("f", f).faults()) == [
        "does not describe b",
        "describes c, which it does not take",
        "has a section Example, which Google's style calls Examples",
        "does not say what it returns (int)",
        "does not say what it raises",
    ]
    g.__doc__ = None
    assert list(Public("g", g).faults()) == ["has no docstring"]
