"""How a model starts, by its own initialisation or by a scheme of idfx, and whether a scheme has an effect."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from idfx.analysis.analyze import analyze
from idfx.api import init_, plan
from idfx.bench.models import Task, build_model
from idfx.core.errors import CertificateError, IdfxError
from idfx.core.literals import parse_call
from idfx.core.records import Example, Plan
from idfx.planning.overrides import Word, read_overrides
from idfx.schemes.scheme import SCHEMES

DEFAULT = "default"  # the model's own initialisation


@dataclass(frozen=True)
class Start:
    """The effect of a scheme on a model: a fingerprint of its plan, or the reason why it does not apply."""

    plan: str
    reason: str = ""

    @property
    def applies(self) -> bool:
        """Whether there is something to train."""
        return not self.reason


def check_scheme(text: str) -> None:
    """Check that a text is `default`, or a scheme with valid options and overrides; raise UsageError otherwise."""
    if text != DEFAULT:
        name, options, _ = _read(text)
        SCHEMES.find(name).read_options(options)


def _read(text: str) -> tuple[str, dict[str, Any], Mapping[str, Word]]:
    """The scheme, its options, and overrides: `idinit(eps=0) + role:head=keep + trait:query=keep`."""
    call, *sets = re.split(r"\s\+\s", text)
    return *parse_call(call, "--schemes"), read_overrides(sets)[0].set


def fingerprint(made: Plan) -> str:
    """Return 16 hexadecimal digits for what a plan writes: fills, arguments and scalars, without reasons or the seed.

    Example:
        >>> layer, x = nn.Linear(2, 2), (torch.ones(1, 2),)
        >>> plans = [plan(analyze(layer, x), "kaiming", seed) for seed in (0, 1)]
        >>> fingerprint(plans[0]) == fingerprint(plans[1])
        True
    """
    written = {name: [decision.fill, dict(decision.arguments)] for name, decision in made.decisions.items()}
    scalars = [[scalar.value, [[end.parameter, end.rows] for end in scalar.on]] for scalar in made.scalars]
    text = json.dumps([written, scalars], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def starts(build: str, task: Task, example: Tensor, schemes: Sequence[str]) -> Mapping[str, Start]:
    """Return the effect of each scheme on a model.

    A scheme does not apply if it cannot be planned, writes nothing, or writes exactly what kaiming or an earlier scheme
    writes; the reason says which.

    Args:
        build: the model, as in `build_model`.
        task: of the model.
        example: two inputs.
        schemes: texts that `check_scheme` takes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(build, task)
    found: dict[str, Start] = {}
    structure = analyze(model, (example,)) if any(text != DEFAULT for text in schemes) else None
    known = {"kaiming": fingerprint(plan(structure, "kaiming"))} if structure is not None else {}
    for text in schemes:
        if text == DEFAULT:
            found[text] = Start(DEFAULT)
            continue
        assert structure is not None
        name, options, words = _read(text)
        try:
            made = plan(structure, name, set=words, **options)
        except IdfxError as error:
            found[text] = Start("", f"it cannot be planned: {error}")
            continue
        mark = fingerprint(made)
        same = next((other for other, its in known.items() if its == mark and other != text), None)
        if not made.decisions and not made.scalars:
            found[text] = Start(mark, "it writes nothing in this model")
        elif same is not None:
            found[text] = Start(mark, f"in this model it writes exactly what {same} writes")
        else:
            found[text] = Start(mark)
            known.setdefault(text, mark)
    return found


def begin(build: str, task: Task, example: Tensor, scheme: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model initialised by a scheme, and the record: the plan's fingerprint and the certificate.

    The model's own random values depend on the seed, whatever the scheme. A model whose certificate fails is trained
    anyway.

    Args:
        build, task, example: as in `starts`.
        scheme: `default`, or as on the command line.
        seed: of every random number.
    """
    torch.manual_seed(seed)
    model = build_model(build, task)
    return model, initialise(model, Example((example,)), scheme, seed)


def initialise(model: nn.Module, example: Example, scheme: str, seed: int) -> dict[str, Any]:
    """Initialise a model by a scheme, and return the record: the plan's fingerprint and the certificate.

    A failed certificate is recorded, and the model stays as written.

    Args:
        model: with its own values, which `default` keeps.
        example: of its inputs.
        scheme: `default`, or as on the command line.
        seed: of every random number.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> initialise(layer, Example((torch.ones(1, 2),)), "zero", 0)["certificate"]
        'passed'
    """
    if scheme == DEFAULT:
        return {"plan": DEFAULT, "certificate": None}
    name, options, words = _read(scheme)
    try:
        report = init_(model, example.args, example.kwargs, scheme=name, seed=seed, set=words, **options)
        said = "passed"
    except CertificateError as error:
        assert error.report is not None
        report, said = error.report, str(error)
    return {"plan": fingerprint(report.plan), "certificate": said}
