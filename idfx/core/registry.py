"""Registries of operators, schemes, sources and fills by name: duplicates are errors, misspellings get suggestions."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from idfx.core.errors import UsageError

T = TypeVar("T")


def did_you_mean(word: str, names: Iterable[str], limit: int = 3) -> str:
    """Return ` Did you mean a, b?`, or an empty string if no name is similar.

    Example:
        >>> did_you_mean("idinti", ["idinit", "kaiming"])
        ' Did you mean idinit?'
    """
    near = difflib.get_close_matches(word, list(names), n=limit, cutoff=0.6)
    return f" Did you mean {', '.join(near)}?" if near else ""


class Registry(Mapping[str, T], Generic[T]):
    """A mapping that fills itself on first use: it imports every module of a package, and modules of other packages.

    Other packages contribute through an entry point of the group, which names a module that registers its items.

    Example:
        >>> fills = Registry("fill")
        >>> @fills.register("ones")
        ... def ones(): ...
        >>> list(fills)
        ['ones']
    """

    def __init__(self, noun: str, package: str | None = None, group: str = "") -> None:
        self.noun = noun
        self._package = package
        self._group = group
        self._items: dict[str, T] = {}

    def register(self, *names: str, by: str = "") -> Callable[[T], T]:
        """Register the decorated object under each name; raises ValueError if a name is taken.

        Args:
            names: of the object.
            by: the module that registers it; by default the object's `__module__`.
        """

        def add(item: T) -> T:
            own = (by or getattr(item, "__module__", "")).startswith(f"{self._package}.")
            if not own:
                self._import_own()  # so that a duplicate raises in the other package, not in idfx
            for name in names:
                if name in self._items:
                    raise ValueError(f"{self.noun} {name!r} is registered twice")
                self._items[name] = item
            return item

        return add

    def _import_own(self) -> None:
        if self._package is None:
            return
        package, self._package = importlib.import_module(self._package), None
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)

    def _discover(self) -> None:
        self._import_own()
        group, self._group = self._group, ""
        for point in importlib.metadata.entry_points(group=group) if group else ():
            try:
                point.load()
            except (Exception, SystemExit) as error:
                self._group = group  # a second attempt fails in the same way
                package = point.dist.name if point.dist is not None else "the package that provides it"
                raise UsageError(
                    f"{self.noun} entry point {point.name} = {point.value}: {type(error).__name__}: {error}; expected "
                    f"a module that registers. Repair or uninstall {package}."
                ) from error

    def __getitem__(self, name: str) -> T:
        self._discover()
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._items))

    def __len__(self) -> int:
        self._discover()
        return len(self._items)

    def find(self, name: str) -> T:
        """Return the item, or raise UsageError with the most similar names."""
        if name not in self:
            known = ", ".join(self)
            raise UsageError(f"{self.noun} {name!r}: unknown; expected one of {known}.{did_you_mean(name, self)}")
        return self[name]
