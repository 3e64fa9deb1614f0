"""What a scheme is, and the registry of schemes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from idfx.errors import UsageError
from idfx.records import Decision, ParameterInfo, Role
from idfx.registry import Registry, did_you_mean


@dataclass(frozen=True)
class Keep:
    """The decision to leave a parameter as it is."""

    reason: str


Decide = Callable[[ParameterInfo, Role, Any], Decision | Keep]


@dataclass(frozen=True)
class Scheme:
    """A scheme: a frozen dataclass of its options and a function from parameter and role to a decision.

    The options class checks its values in `__post_init__` and raises UsageError. `decide` sees one parameter at a
    time, touches no tensor, and is called once for each parameter that may be written.
    """

    name: str
    options: type[Any]
    decide: Decide

    @property
    def summary(self) -> str:
        """The first line of the scheme's docstring."""
        return (self.decide.__doc__ or "").strip().splitlines()[0]

    def read_options(self, given: Mapping[str, Any]) -> Any:
        """Return the options with these values; raises UsageError for an unknown name or an unusable value."""
        known = [field.name for field in dataclasses.fields(self.options)]
        for name in given:
            if name not in known:
                raise UsageError(
                    f"scheme {self.name!r}: unknown option {name!r}; expected one of {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )
        return self.options(**given)


SCHEMES: Registry[Scheme] = Registry("scheme", "idfx.schemes")


def scheme(name: str, options: type[Any]) -> Callable[[Decide], Decide]:
    """Register the decorated function as the decision of a scheme."""

    def add(decide: Decide) -> Decide:
        SCHEMES.register(name)(Scheme(name, options, decide))
        return decide

    return add
