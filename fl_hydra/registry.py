"""Plain `{name: class}` registries of the interchangeable parts.

A part (a dataset, a model, an optimizer, a method, ...) is a dataclass: its fields are its hyper-parameters and, at the
same time, the schema that Hydra checks; its methods are its behaviour. A part's module must not import torch at the top,
so that `--help`, completion and the answer to a finished run stay quick.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import pkgutil
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fl_hydra.errors import UserError, require

AS_BEFORE = "as_before"


def as_before(value: Any) -> dict[str, Any]:
    """The record of a field that a part, or an experiment, got after runs had been made: its `metadata`.

    `value` is the one, as a plain value, that trains as all did before there was the field. There the field is left out of a run's
    name, so that earlier runs keep theirs; at every other value, the default or not, it is in the name. Once it has been released, the
    record is never changed, even if the default is.

        momentum: float = field(default=0.0, metadata=as_before(0.0))
    """
    return {AS_BEFORE: value}


def records(cls: type[Any]) -> dict[str, Any]:
    """What means "as before" in each field of a dataclass that has a record; one that a base class wrote holds in subclasses too."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for field in base.__dict__.get("__dataclass_fields__", {}).values():
            if AS_BEFORE in field.metadata:
                found[field.name] = field.metadata[AS_BEFORE]
    return found


@dataclasses.dataclass
class Component:
    """What every interchangeable part has: a name, and a version that is part of a run's identity."""

    name: str = ""

    group: ClassVar[str] = ""
    """The configuration group that messages about its fields name."""

    version: ClassVar[int] = 1
    """Raised when a fix changes results, so that runs made before it are not taken for runs made after it."""

    uses: ClassVar[frozenset[str]] = frozenset()
    """The top-level keys (of `N_c` and `gamma`) that this part reads; where no part reads one, it is irrelevant."""

    def check_not_negative(self, *names: str) -> None:
        """Refuse numbers that are below 0 or not finite.

        Raises:
            UserError: naming the first that is.
        """
        for name in names:
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{self.group}.{name}={value}: must be 0 or more and finite")

    @property
    def option(self) -> str:
        """The option that this is, where several options of a group share a class."""
        return self.name

    def identity(self) -> dict[str, Any]:
        """What of this part may be in a run's name, as plain values: all fields, unless one has no effect with the others.

        A field of the first release that has no effect is None; a later one is what :func:`as_before` says, at which it is left out.
        """
        return dataclasses.asdict(self)


C = TypeVar("C", bound=Component)


class Registry(Mapping[str, type[C]]):
    """The classes of one configuration group, by name; filled by importing every module of a package."""

    def __init__(self, group: str, package: str) -> None:
        self.group = group
        self._package = package
        self._classes: dict[str, type[C]] = {}
        self._loaded = False

    def register(self, cls: type[C]) -> type[C]:
        """Class decorator: add a dataclass under the default of its field `name`.

        Raises:
            TypeError: it is no dataclass of its own, has no name, or another class has the name.
        """
        if "__dataclass_fields__" not in vars(cls):  # those that it inherits are its parent's: its own fields would be ignored
            raise TypeError(f"class {cls.__name__} needs @dataclass below @register")
        name = next((field.default for field in dataclasses.fields(cls) if field.name == "name"), None)
        if not isinstance(name, str) or not name:
            raise TypeError(f"class {cls.__name__} needs a name of its own, as `name: str = '{cls.__name__.lower()}'`")
        if name in self._classes and self._classes[name].__qualname__ != cls.__qualname__:
            other = self._classes[name]
            raise TypeError(f"classes {other.__name__} ({other.__module__}) and {cls.__name__} are both registered as {self.group}={name}")
        self._classes[name] = cls
        return cls

    def _load(self) -> dict[str, type[C]]:
        if not self._loaded:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__, self._package + "."):
                _import(module.name)
            self._loaded = True
        return self._classes

    def __getitem__(self, name: str) -> type[C]:
        return self._load()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __len__(self) -> int:
        return len(self._load())


def _import(name: str) -> None:
    """Import a module of parts.

    Raises:
        UserError: it cannot be imported; the line names its file, so that whoever wrote it last sees why no command works.
    """
    try:
        importlib.import_module(name)
    except Exception as error:
        spec = importlib.util.find_spec(name)
        file = Path(str(spec.origin)) if spec else Path(name)
        frames = traceback.extract_tb(error.__traceback__)
        line = (
            error.lineno
            if isinstance(error, SyntaxError)
            else next((at.lineno for at in reversed(frames) if Path(at.filename) == file), None)
        )
        what = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        where = f"{Path(*file.parts[-3:])}" + (f", line {line}" if line else "")
        raise UserError(f"{where}: {type(error).__name__}: {what}; no command works until this file is fixed or removed") from error
