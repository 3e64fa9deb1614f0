"""Records → text for a terminal, with rich tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from idfx.core.records import Certificate, Decision, Growth, Join, Plan, Report, StartCheck, Structure, Sum
from idfx.core.roles import Acts
from idfx.planning.difference import Difference
from idfx.planning.explain import Explanation
from idfx.planning.export import SavedFile
from idfx.report.layout import count as _count
from idfx.report.layout import table as _table
from idfx.report.layout import text as _text
from idfx.schemes.scheme import default_options


def _number(value: float) -> str:
    return f"{value:g}"


def _arguments(arguments: Mapping[str, Any]) -> str:
    shown = []
    for name, value in arguments.items():
        if name == "layout":
            groups = value.get("groups", 1) if isinstance(value, Mapping) else value.groups
            if groups > 1:
                shown.append(f"groups={groups}")
        else:
            shown.append(f"{name}={_number(value) if isinstance(value, float) else value}")
    return ", ".join(shown)


def _fill(decision: Decision) -> str:
    if decision.fill == "constant":
        return _number(decision.arguments["value"])
    return f"{decision.fill}({_arguments(decision.arguments)})"


def _scheme(made: Plan, verbose: bool) -> str:
    defaults = {} if verbose else default_options(made.scheme)
    options = _arguments({name: value for name, value in made.options.items() if defaults.get(name, ...) != value})
    return f"{made.scheme}, seed {made.seed}" + (f", {options}" if options else "")


def init(report: Report, spec: str, saved: SavedFile, verbose: bool = False) -> str:
    """Return the result of `idfx init` in a few lines; of the scheme's options those that are not the defaults."""
    made = report.plan
    size = sum(math.prod(shape) for shape in made.shapes.values())
    fills = Counter(decision.fill for decision in made.decisions.values())
    written = ": " * bool(fills) + ", ".join(f"{count} {fill}" for fill, count in fills.most_common())
    rows = [
        ("model", f"{spec}: {_count(size, 'parameter')} in {_count(len(made.shapes), 'tensor')}"),
        ("scheme", _scheme(made, verbose)),
        ("written", f"{_count(len(made.decisions), 'tensor')}{written}"),
    ]
    for source, count in Counter(made.loaded.values()).most_common():
        rows.append(("loaded", f"{_count(count, 'tensor')} from {source}"))
    for reason, count in Counter(made.kept.values()).most_common():
        rows.append(("kept", f"{_count(count, 'tensor')}: {reason}"))
    if made.scalars:
        how = "through torch.nn.utils.parametrize; idfx.fold_ multiplies them into the weights"
        rows.append(("added", f"{_count(len(made.scalars), 'learned scalar')} {how}"))
    rows += _certificate_rows(report.certificate, len(report.structure.sums))
    rows.append(("file", f"{saved.path}: {_count(saved.bytes, 'byte')}, {_count(saved.tensors, 'tensor')}"))
    return _text(_table(("", ""), rows)).lstrip("\n")


_SAME_OUTPUT = "different features at every join, the same output: a zero layer or closed branches block every path"


def _certificate_rows(found: Certificate | None, sums: int = 0) -> list[tuple[str, str]]:
    if found is None:
        return [("blocks", "not certified (--no-certify)")]
    closed = [check for check in found.checks if check.status not in ("open", "unclaimed")]
    rows = []
    if closed:
        worst = found.worst
        text = f"{found.certified} of {len(closed)} residual blocks start as their shortcut"
        rows.append(("blocks", f"{text}; worst deviation {worst.deviation:.2g} at {worst.join}" if worst else text))
    elif not any(check.status == "unclaimed" for check in found.checks):
        other = f"no residual join was found; {_count(sums, 'sum')} of other kinds (see idfx analyze)"
        none = other if sums else "the model has no residual block"
        rows.append(("blocks", "none of the residual joins can be closed" if found.checks else none))
    if unclaimed := [check for check in found.checks if check.status == "unclaimed"]:
        deviations = sorted(check.deviation for check in unclaimed)
        count = _count(len(unclaimed), "residual block")
        text = f"the plan does not close {count}"
        span = f"{deviations[0]:.2g} to {deviations[-1]:.2g}" if len(deviations) > 1 else f"{deviations[0]:.2g}"
        differ = (
            f"output and shortcut differ by {span} of the shortcut" if deviations[-1] else "all start as their shortcut"
        )
        rows.append(("blocks", f"{text}: {differ}"))
    if still_open := [check.join for check in found.checks if check.status == "open"]:
        names = ", ".join(still_open[:3]) + (" ..." if len(still_open) > 3 else "")
        rows.append(("open", f"{_count(len(still_open), 'join')} cannot be closed: {names} (see idfx analyze)"))
    if unseen := [check.join for check in found.checks if check.status == "unseen"]:
        names = ", ".join(unseen[:3]) + (" ..." if len(unseen) > 3 else "")
        why = "because their shortcut exists only inside an operator"
        rows.append(("unseen", f"{_count(len(unseen), 'join')} cannot be compared {why}: {names}"))
    if found.growth is not None:
        rows.append(("growth", _growth(found.growth)))
    rows += _signal_rows(found)
    rows += [("failed", failure) for failure in found.failures]
    return rows


def _signal_rows(found: Certificate) -> list[tuple[str, str]]:
    """Whether the signal gets through, its size, and which parameters get a gradient."""
    rows, told = [], []
    start = found.start
    if found.passed:
        told = ["finite"]
        if found.distinct or not found.remark:
            told.append(f"two different inputs give {'different outputs' if found.distinct else _SAME_OUTPUT}")
    if start is not None and (sizes := [size for size in start.sizes.values() if size]):
        span = f"{min(sizes):.2g} to {max(sizes):.2g}" if len(sizes) > 1 else f"{sizes[0]:.2g}"
        told.append(f"root mean square {span}")
    if told:
        rows.append(("signal", "; ".join(told)))
    if found.remark:
        rows.append(("remark", found.remark))
    return rows if start is None else rows + _start_rows(start)


def _start_rows(start: StartCheck) -> list[tuple[str, str]]:
    """Which parameters get a gradient, and whether frozen parameters alone make the outputs."""
    if start.refusal:
        return [("gradient", f"not measured: {start.refusal}")]
    rows = []
    if start.changed is not None:
        told = f"change by {start.changed:.2g}" if start.changed else "are unchanged"
        rows.append(("frozen", f"the frozen parameters alone make the outputs, which {told}"))
    when = "in the first step" if start.steps <= 1 else f"within {start.steps} steps"
    if start.reached:
        rows.append(("gradient", f"gets to {_count(start.reached, 'trainable parameter')} {when}"))
    if start.missing:
        known = "as in the author's start" if start.author_sizes else "and the author's start is not known"
        count = _count(len(start.missing), "trainable parameter")
        rows.append(
            ("gradient", f"none gets to {count}, {known}: {', '.join(start.missing[:3])}{_more(start.missing)}")
        )
    return rows


def _growth(found: Growth) -> str:
    """Return how a model relates to the one whose checkpoint was loaded into it."""
    why = [
        (found.fresh, "not loaded, outside the added blocks"),
        (found.unplaced, "in the checkpoint, but missing or different in the model"),
        (found.altered, "blocks whose shortcut is not an identity"),
    ]
    if reasons := [f"{', '.join(names[:3])}{_more(names)} ({what})" for names, what in why if names]:
        return f"the outputs are not compared with those of the loaded model: {'; '.join(reasons)}"
    if found.widened or found.longer:
        return _grown(found)
    rest = "everything outside them was loaded" if found.blocks else "everything was loaded"
    if not found.blocks:
        return f"{rest}, and no block was added"
    added = _count(len(found.blocks), "added branch", "added branches")
    if found.difference is None:
        return f"{added}; {rest}. The outputs with and without them could not be compared"
    verb = "changes" if len(found.blocks) == 1 else "change"
    if not found.difference:
        return f"{added} {'does' if len(found.blocks) == 1 else 'do'} not change the outputs; {rest}"
    return f"{added} {verb} the outputs by {found.difference:.2g} of the largest; {rest}"


def _grown(found: Growth) -> str:
    """Return how a model whose tensors grew relates to the checkpoint's model."""
    what = [
        *([_count(len(found.blocks), "added branch", "added branches")] if found.blocks else []),
        *([_count(len(found.widened), "widened tensor")] if found.widened else []),
        *([f"new rows in {_count(len(found.longer), 'tensor')}"] if found.longer else []),
    ]
    tokens = " on old tokens" if found.longer else ""
    if found.difference is None:
        return f"{', '.join(what)}; the outputs cannot be compared with those of the checkpoint's model: {found.place}"
    if not found.difference:
        return f"{', '.join(what)} do not change the outputs{tokens}"
    return f"{', '.join(what)} change the outputs{tokens} by {found.difference:.2g} of the largest"


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""


def structure(found: Structure, spec: str) -> str:
    """Return the structure of a model: its joins, other sums, weights, and unknown operators."""
    size = sum(math.prod(info.shape) for info in found.parameters.values())
    kinds = Counter(join.kind for join in found.joins)
    closed = sum(join.zeroable for join in found.joins)
    head = [
        f"{spec}: {found.model}, {_count(size, 'parameter')}, {_count(len(found.sites), 'weight site')}, "
        f"captured on {found.capture.how} tensors",
        f"{_count(len(found.joins), 'residual join')}"
        + (f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}), " if kinds else ", ")
        + f"{closed} can be closed",
    ]
    parts: list[Any] = [*head, ""]
    if found.joins:
        parts += [_joins_table(found.joins), ""]
    if found.sums:
        parts += ["sums that are not residual joins:", _sums_table(found.sums), ""]
    parts += ["weights:", _weights_table(found), ""]
    if found.unknown:
        rows = [(unknown.operator, ", ".join(unknown.sites)) for unknown in found.unknown]
        parts += ["unknown operators:", _table(("operator", "in"), rows)]
    else:
        parts += ["unknown operators: none"]
    return _text(*parts)


def _joins_table(joins: Sequence[Join]) -> Table:
    rows = []
    for join in joins:
        ends = ", ".join(end.parameter for end in join.ends) or "-"
        note = "" if join.zeroable else f"open: {join.reason}"
        shortcut = f"{join.kind}: {', '.join(join.shortcut)}" if join.shortcut else join.kind
        rows.append((join.name, join.fork, shortcut, ends, note))
    return _table(("join", "fork", "shortcut", "ends", ""), rows)


def _sums_table(sums: Sequence[Sum]) -> Table:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in sums:
        groups.setdefault((item.kind, item.reason), []).append(item.name)
    rows = []
    for (kind, reason), names in groups.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        rows.append((kind, reason, shown))
    return _table(("kind", "because", "where"), rows)


def _weights_table(found: Structure) -> Table:
    rows = []
    for name, info in found.parameters.items():
        role = found.roles[name]
        if role.layout is None and role.name.acts not in (Acts.WEIGHT, Acts.FORM, Acts.TABLE):
            continue
        matrix = " × ".join(map(str, role.layout.matrix(info.shape))) if role.layout else "-"
        groups = f" × {role.layout.groups} groups" if role.layout and role.layout.groups > 1 else ""
        rows.append((name, str(list(info.shape)), matrix + groups, role.name, ", ".join(role.traits)))
    return _table(("parameter", "shape", "matrix", "role", ""), rows)


def plan(made: Plan, spec: str, verbose: bool = False) -> str:
    """Return a plan: one line per parameter."""
    rows = []
    for name, shape in made.shapes.items():
        decision = made.decisions.get(name)
        what = _fill(decision) if decision else "load" if name in made.loaded else "keep"
        reason = decision.reason if decision else made.kept.get(name) or f"from {made.loaded[name]}"
        rows.append((name, str(list(shape)), what, reason))
    loaded = f", {len(made.loaded)} loaded" if made.loaded else ""
    head = f"{spec}: {_scheme(made, verbose)}; {len(made.decisions)} written, {len(made.kept)} kept{loaded}"
    return _text(head, "", _table(("parameter", "shape", "fill", "because"), rows))


def differences(found: Sequence[Difference], left: str, right: str, every: bool = False) -> str:
    """Return the differences between two sides, one line per parameter."""
    counts = Counter(one.status for one in found)
    shown = [one for one in found if every or one.status != "same"]
    rows = [
        (one.parameter, one.status, one.left, one.right, "" if one.largest is None else _number(one.largest))
        for one in shown
    ]
    plural = {"differs": "differ"}
    told = ", ".join(
        f"{count} {plural.get(status, status) if count > 1 else status}" for status, count in counts.items()
    )
    head = f"{left} and {right}: {_count(len(found), 'tensor')}: {told}"
    columns = ("parameter", "", left, right, "largest difference")
    width = 5 if any(row[4] for row in rows) else 4
    return _text(head, *(("", _table(columns[:width], [row[:width] for row in rows])) if rows else ()))


def explanation(found: Explanation) -> str:
    """Return everything about one parameter."""
    info, role = found.parameter, found.role
    rows = [
        ("parameter", f"{info.name} {list(info.shape)} {info.dtype}"),
        ("role", f"{role.name}: {role.evidence}"),
        *((name, evidence) for name, evidence in role.traits.items()),
    ]
    if info.aliases:
        rows.append(("also named", ", ".join(info.aliases)))
    rows += [("site", f"{site.operator} in {site.module or 'the model'}, call {site.step}") for site in found.sites]
    if found.decision is None:
        rows.append(("kept", found.kept))
    else:
        rows.append(("fill", _fill(found.decision)))
        rows.append(("reason", found.decision.reason))
    parts: list[Any] = [_table(("", ""), rows)]
    if found.matrix:
        size = " × ".join(map(str, found.size))
        shown = f"{len(found.matrix)} rows and {len(found.matrix[0])} columns of {size}"
        parts += ["", f"first {shown}:"]
        parts += ["  ".join(f"{value:>12.8g}" for value in row) for row in found.matrix]
    return _text(*parts).lstrip("\n")


def catalogue(rows: Sequence[tuple[str, str]]) -> str:
    """Return names with their summaries."""
    return _text(_table(("name", "description"), rows))


def environment(found: Mapping[str, Any]) -> str:
    """Return what idfx runs with: one line per fact, and the extras that are not complete."""
    incomplete = [f"{name}: pip install 'idfx[{name}]'" for name, whole in found["extras"].items() if not whole]
    rows = [
        *found["versions"].items(),
        ("system", found["system"]),
        ("devices", ", ".join(found["devices"])),
        ("threads", f"{found['threads']} of {_count(found['cores'], 'core')}"),
        ("tracer", found["tracer"]),
        *(("extension", extension) for extension in found["extensions"]),
        *(("not installed", extra) for extra in incomplete),
    ]
    return _text(_table(("", ""), rows)).lstrip("\n")
