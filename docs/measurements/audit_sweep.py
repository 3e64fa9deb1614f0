"""The audit of models as their authors ship them: one process each, one line of JSON each, resumable.

python docs/measurements/audit_sweep.py -o docs/measurements/audit_sweep.jsonl
python docs/measurements/audit_sweep.py --show docs/measurements/audit_sweep.jsonl

100 models of timm (a small one of each module, and more) and 40 types of transformers (tiny). A line holds the exit
code of `idfx audit SPEC --json`, and of its errors and warnings how many there are of each metric, the worst value and
the first places.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ZOO = Path(__file__).resolve().parents[2] / "tests" / "zoo"
LIMITS = ("--timeout", "400", "--max-memory", "8GiB", "--device", "cpu", "--quiet", "--json")
WEIGHTS = ("--batch", "none")
BATCH = ("--only", "forward,backward", "--budget", "90")
TIMM = 100
PLACES = 3  # of the findings of one kind that a line holds
MORE = (
    "resnet50", "resnext50_32x4d", "wide_resnet50_2", "resnetv2_50", "vit_base_patch32_224", "mobilenetv3_small_100",
    "efficientnet_b0", "mobilevit_s", "coatnet_0_224", "gmlp_s16_224", "nf_resnet26", "cait_xxs24_224", "mixer_s32_224",
    "swinv2_cr_tiny_ns_224", "regnety_004", "levit_128s", "dm_nfnet_f0", "seresnet50",
)  # fmt: skip
TYPES = (
    "albert", "bart", "bert", "bloom", "canine", "clip", "convbert", "deberta-v2", "detr", "dinov2", "distilbert",
    "electra", "falcon", "fnet", "gemma2", "gpt2", "gpt_neox", "gptj", "hubert", "jamba", "llama", "longformer",
    "mamba", "mamba2", "mixtral", "mobilebert", "olmo2", "opt", "phi3", "qwen3_moe", "recurrent_gemma", "roformer",
    "rwkv", "segformer", "swinv2", "switch_transformers", "t5", "wav2vec2", "whisper", "xlnet",
)  # fmt: skip


def models() -> list[str]:
    """Return the specifications of the sweep."""
    sys.path.insert(0, str(ZOO))
    from sweep import timm_modules

    chosen = dict.fromkeys((*timm_modules(), *(f"timm:{name}" for name in MORE)))
    return [*list(chosen)[:TIMM], *(f"transformers:{name}" for name in TYPES)]


def ready() -> None:
    """Import once what every process needs."""
    import timm  # noqa: F401
    import torch
    import torch._dynamo
    import transformers  # noqa: F401

    import idfx.audits.run
    import idfx.report.json  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    gc.collect()
    gc.freeze()


def look(spec: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Return the line of one model: `idfx audit` in a process of its own, forked from this one."""
    words = ["--model-arg", "tiny=true"] if spec.startswith("transformers:") else []
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            run(["audit", spec, *words, *LIMITS, *options], out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        said, complaint = out.read(), err.read()
    line: dict[str, Any] = {"spec": spec, "code": code, "seconds": round(time.perf_counter() - start, 1)}
    try:
        document = json.loads(said)
    except json.JSONDecodeError:
        return {**line, "said": complaint.strip()[-300:]}
    return {**line, "findings": list(condensed(document["findings"]))}


def run(words: list[str], out: int, err: int) -> NoReturn:
    """Run the program with its output in files, and end the process with its exit code."""
    from idfx_cli.main import main

    os.nice(10)
    os.dup2(out, 1)
    os.dup2(err, 2)
    code = 70
    try:
        main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def condensed(findings: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one record for the errors, and one for the warnings, of each metric."""
    kinds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in findings:
        if one["severity"] != "info":
            kinds.setdefault((one["severity"], one["metric"], one["remedy"]), []).append(one)
    for (severity, metric, _), group in kinds.items():
        values = [one["value"] for one in group]
        yield {
            "severity": severity, "metric": metric, "count": len(group), "least": min(values), "most": max(values),
            "places": [one["parameter"] for one in group[:PLACES]], "message": group[0]["message"],
        }  # fmt: skip


def show(file: Path) -> None:
    """Print the models with findings, and how many there are without."""
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    clean = [line["spec"] for line in lines if line.get("findings") == []]
    print(f"{len(lines)} models, {len(clean)} without errors and warnings, {sum('said' in x for x in lines)} not read")
    for line in lines:
        if "said" in line:
            print(f"{line['spec']}: code {line['code']}: {line['said']}")
        for one in line.get("findings", ()):
            places = ", ".join(one["places"])
            print(f"{line['spec']}: {one['severity']} {one['metric']} x{one['count']} {places}: {one['message']}")


def main() -> None:
    """Sweep, or show a sweep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("specs", nargs="*", help="these models alone")
    parser.add_argument("-o", "--output", type=Path, default=Path("audit_sweep.jsonl"), help="lines are added to it")
    parser.add_argument("--batch", action="store_true", help="forward and backward of one batch instead of the weights")
    parser.add_argument("--show", type=Path, metavar="FILE.jsonl", help="print what a sweep found and end")
    given = parser.parse_args()
    if given.show:
        show(given.show)
        return
    ready()
    texts = given.output.read_text().splitlines() if given.output.exists() else []
    done = {json.loads(text)["spec"] for text in texts}
    specs = [spec for spec in given.specs or models() if spec not in done]
    for number, spec in enumerate(specs, 1):
        line = look(spec, BATCH if given.batch else WEIGHTS)
        with given.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{number}/{len(specs)} {spec} {line['code']} {line['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
