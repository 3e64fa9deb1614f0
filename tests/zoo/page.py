"""The lines of sweeps → docs/zoo.md and one table per library.

    python tests/zoo/page.py 1a2b3c4 sweep/*.jsonl
    python tests/zoo/page.py 0f9e8d7 earlier/*.jsonl 1a2b3c4 sweep/*.jsonl

Each file is assumed to be swept at the commit named before it; a later line of a model replaces an earlier one. Nothing
is left out: every shortfall is listed under "What falls short" with its reason, and in its table.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
Line = dict[str, Any]

SETS = {
    "timm": "timm, every name of `timm.list_models()`",
    "torchvision": "torchvision, every name of `torchvision.models.list_models()`",
    "transformers": "transformers, tiny configurations of every model type of `AutoModel`",
    "plain": "plain torch.nn: transformers, recurrent layers, parametrised modules (`tests/zoo/plain.py`)",
    "small": "families that no dependency carries, written small (`tests/zoo/small.py`)",
}


def set_of(spec: str) -> str:
    """Return the table that a model belongs to.

    Example:
        >>> set_of("timm:resnet50"), set_of("/somewhere/tests/zoo/plain.py:lstm")
        ('timm', 'plain')
    """
    source = spec.rpartition(":")[0]
    return Path(source).stem if source.endswith(".py") else source


def name_of(spec: str) -> str:
    """Return what a model is called within its table."""
    return spec.rpartition(":")[2]


def proof(line: Line) -> str:
    """Say how many of the joins that can be closed start as their shortcut."""
    if line["status"] != "ok":
        return ""
    if "certified" not in line:
        return "not tried"
    return f"{line['certified']} of {line['zeroable']}"


def shortfalls(line: Line) -> list[str]:
    """Return what is not as the target has it, each with its reason."""
    if line["status"] != "ok":
        return [f"{line['status']} in {line.get('stage', '?')}: {line.get('cause') or line.get('error', '')}"]
    found = [f"operator {name} unknown in {', '.join(sites[1:])}" for name, sites in line.get("unknown", {}).items()]
    for word, what in (("certified", "after `--eps 0`"), ("proven", "with noise in all other parameters")):
        if line.get(word, line["zeroable"]) != line["zeroable"]:
            named = ", ".join(f"{join} by {size}" for join, size in list(line[f"{word} not"].items())[:3])
            found.append(f"{line[word]} of {line['zeroable']} joins are their shortcut {what}: {named}")
    if "bounded" in line and line["bounded"] != line["zeroable"]:
        named = ", ".join(f"{join} by {size}" for join, size in list(line["bounded not"].items())[:3])
        found.append(f"{line['bounded']} of {line['zeroable']} joins are within their bound by default: {named}")
    if line.get("certified finite") is False:
        found.append("the output after `--eps 0` is not finite")
    if line.get("certified distinct") is False:
        found.append("two inputs give the same output after `--eps 0`")
    replayed = line.get("replayed", "fresh")
    if replayed not in ("fresh", "example"):
        found.append(f"replay: {replayed}")
    return found


def table(lines: Sequence[Line]) -> list[str]:
    """Return one row per model."""
    head = ("model", "captured", "operators unknown", "joins by kind", "can be closed", "certified", "replayed on",
            "seconds", "MiB")  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        kinds = ", ".join(f"{count} {kind}" for kind, count in line.get("kinds", {}).items())
        replayed = line.get("replayed", "")
        cells = (
            f"`{name_of(line['spec'])}`",
            line.get("how", line["status"]),
            ", ".join(line.get("unknown", {})) or "none" if line["status"] == "ok" else "",
            kinds or ("no join" if line["status"] == "ok" else ""),
            line.get("zeroable", ""),
            proof(line),
            {"fresh": "fresh input", "example": "the example", "": ""}.get(replayed, "differs"),
            line["wall"],
            line["peak MiB"],
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def counts(lines: Sequence[Line]) -> tuple[str, ...]:
    """Return the figures of one table."""
    ok = [line for line in lines if line["status"] == "ok"]
    tried = [line for line in ok if "certified" in line]
    joins = sum(line["joins"] for line in ok)
    return (
        f"{len(ok)} of {len(lines)}",
        f"{sum(line['how'] == 'meta' for line in ok)}",
        f"{sum(bool(line['unknown']) for line in ok)}",
        f"{joins}",
        f"{sum(line['zeroable'] for line in ok)}",
        f"{sum(line['certified'] for line in tried)} of {sum(line['zeroable'] for line in tried)} in {len(tried)}",
        f"{sum(line.get('proven', 0) for line in tried)} of {sum(line['zeroable'] for line in tried)}",
        f"{sum(line.get('bounded', 0) for line in tried)} of "
        f"{sum(line['zeroable'] for line in tried if 'bounded' in line)}",
        f"{sum(line.get('replayed') in ('fresh', 'example') for line in tried)} of {len(tried)}",
    )


def most(lines: Iterable[Line], reasons: Callable[[Line], Iterable[str]]) -> list[tuple[str, int, list[str]]]:
    """Return each reason, how many there are of it, and the models that it is found in."""
    count: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for line in lines:
        for reason in reasons(line):
            count[reason] += 1
            where.setdefault(reason, []).append(line["spec"])
    return [(reason, number, where[reason]) for reason, number in count.most_common()]


def commits(lines: Sequence[Line]) -> str:
    """Say at which commits models were swept.

    Example:
        >>> commits([{"commit": "a"}, {"commit": "b"}, {"commit": "a"}])
        'a (2 models), b (1)'
    """
    found = Counter(line["commit"] for line in lines).most_common()
    return ", ".join(f"{name} ({count}{' models' if not index else ''})" for index, (name, count) in enumerate(found))


def page(lines: Sequence[Line]) -> str:
    """Return docs/zoo.md."""
    sets = {key: [line for line in lines if set_of(line["spec"]) == key] for key in SETS}
    head = ("models", "read", "on meta", "with an unknown operator", "joins", "can be closed", "certified",
            "proven", "bounded", "replayed")  # fmt: skip
    text = [
        "# What idfx reads: the zoo", "",
        "Every model ran in its own process, with limits on time and memory. A program generates this page and its "
        "tables from the output lines of those processes:", "",
        "```sh",
        "for set in timm-all torchvision transformers-all torch small; do",
        "    python tests/zoo/sweep.py --set $set -o $set.jsonl",
        "done",
        "python tests/zoo/page.py $(git rev-parse --short HEAD) *.jsonl",
        "```", "",
        f"Swept at commit {commits(lines)}.", "",
        "| " + " | ".join(head) + " |", "|" + " --- |" * len(head),
    ]  # fmt: skip
    for key, found in sets.items():
        if found:
            text.append("| " + " | ".join((f"[{key}](zoo/{key}.md)", *counts(found))) + " |")
    text += [
        "",
        *(f"- *{key}*: {what}" for key, what in SETS.items() if sets[key]),
        "- *read*: built, captured and analysed, out of all models tried; *on meta*: without computing any values",
        "- *certified*: joins that equal their shortcut exactly after `idfx init --eps 0`, out of those that can be "
        "closed, for models small enough to run here (*not tried* in the tables for the others)",
        "- *proven*: the same with noise in all other parameters, so that the ends alone must close the branch",
        "- *bounded*: joins that equal their shortcut within their own bound after `idfx init` with its defaults "
        "([method.md](method.md#the-certificates-tolerance))",
        "- *replayed*: models whose captured graph gives the model's own output, bit for bit, on an input other than "
        "that of the capture, or on the example if no other input fits; if a forward takes a different path on the "
        "meta device, the graph captured on real tensors is used", "",
        "## What falls short", "",
    ]  # fmt: skip
    short = [(line["spec"], shortfalls(line)) for line in lines]
    for spec, reasons in short:
        text += [f"- `{name_of(spec)}` ({set_of(spec)}): {' '.join(reason.split())}" for reason in reasons]
    text += [
        "",
        "## Joins that cannot be closed",
        "",
        "idfx leaves them unchanged, and `analyze` lists them.",
        "",
    ]
    for reason, number, where in most(lines, lambda line: line.get("open", {}).keys()):
        joins = sum(line["open"].get(reason, 0) for line in lines if line.get("open"))
        rest = f" and {number - 8} more" if number > 8 else ""
        names = ", ".join(f"`{name_of(spec)}`" for spec in where[:8]) + rest
        text.append(f"- {reason}: {joins} joins in {number} models ({names})")
    text += ["", "## Sums that are not residual joins", "", "By kind ([structure.md](structure.md) defines them):", ""]
    sums: Counter[str] = Counter()
    for line in lines:
        sums.update(line.get("sums", {}))
    text += [f"- {kind}: {count}" for kind, count in sums.most_common()]
    text += ["", "## Parameters without a rule", ""]
    for role in ("unresolved", "other"):
        found = [line for line in lines if line.get("odd", {}).get(role)]
        named = ", ".join(f"`{name_of(line['spec'])}` ({line['odd'][role][0]})" for line in found)
        text.append(f"- {role}: {named or 'none'}")
    return "\n".join(text) + "\n"


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "words", nargs="+", metavar="COMMIT FILE.jsonl ...", help="what was swept, and what was written"
    )
    options = parser.parse_args()
    found: dict[str, Line] = {}
    commit = ""
    for word in options.words:
        if not word.endswith(".jsonl"):
            commit = word
            continue
        if not commit:
            parser.error(f"{word}: no commit before it")
        for text in Path(word).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            found[f"{set_of(line['spec'])}:{name_of(line['spec'])}"] = {**line, "commit": commit}
    lines = [found[key] for key in sorted(found)]
    (DOCS / "zoo").mkdir(exist_ok=True)
    for key, what in SETS.items():
        own = [line for line in lines if set_of(line["spec"]) == key]
        if own:
            text = [f"# {what}", "", f"Swept at commit {commits(own)}; [zoo.md](../zoo.md) explains the columns.", ""]
            (DOCS / "zoo" / f"{key}.md").write_text("\n".join([*text, *table(own)]) + "\n", encoding="utf-8")
    (DOCS / "zoo.md").write_text(page(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
