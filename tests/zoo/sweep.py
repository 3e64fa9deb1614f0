"""Every model of a set, each in a process of its own: build, capture, analyze and, where it is small, prove.

    python tests/zoo/sweep.py --set timm-modules -o timm.jsonl
    python tests/zoo/sweep.py --set transformers --only 'bert|llama' -o some.jsonl
    python tests/zoo/sweep.py --table *.jsonl

One JSON line per model. A model that crashes, takes too long or needs too much memory is a line that says so.
Two proofs are tried: `certified` counts the joins that are their shortcut after `idfx init --eps 0`, `proven` those
that are when every parameter is random noise and nothing but the ends, and the biases behind them, is zero.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Transformers architectures of every kind; a name that the installed release lacks is left out.
FAMILIES = (
    # text
    "albert", "apertus", "arcee", "bert", "big_bird", "biogpt", "bitnet", "bloom", "camembert", "canine", "codegen",
    "cohere", "cohere2", "convbert", "ctrl", "deberta", "deberta-v2", "diffllama", "distilbert", "electra", "ernie4_5",
    "esm", "exaone4", "falcon", "flaubert", "fnet", "funnel", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "helium", "ibert", "layoutlm", "lilt", "llama",
    "longformer", "luke", "markuplm", "megatron-bert", "mistral", "mobilebert", "modernbert", "mpnet", "mpt", "mra",
    "nemotron", "nystromformer", "olmo", "olmo2", "openai-gpt", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3",
    "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "smollm3", "splinter",
    "squeezebert", "stablelm", "starcoder2", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "yoso",
    # mixture of experts
    "dbrx", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "flex_olmo", "glm4_moe", "gpt_oss", "granitemoe",
    "jetmoe", "minimax", "mixtral", "nllb-moe", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "switch_transformers",
    # recurrence and state space
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "nemotron_h",
    "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
    # encoder and decoder
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "fsmt", "led", "longt5", "m2m_100", "marian", "mbart",
    "mt5", "mvp", "pegasus", "pegasus_x", "plbart", "prophetnet", "t5", "t5gemma", "umt5",
    # vision
    "beit", "bit", "conditional_detr", "convnext", "convnextv2", "cvt", "data2vec-vision", "deformable_detr", "deit",
    "depth_pro", "detr", "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "donut-swin", "dpt",
    "efficientnet", "focalnet", "glpn", "hgnet_v2", "hiera", "ijepa", "imagegpt", "levit", "mask2former", "maskformer",
    "mgp-str", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "pvt_v2", "regnet",
    "resnet", "rt_detr", "sam", "segformer", "seggpt", "swiftformer", "swin", "swin2sr", "swinv2", "table-transformer",
    "textnet", "timesformer", "upernet", "videomae", "vit", "vit_mae", "vit_msn", "vitdet", "vits", "vivit", "vjepa2",
    "yolos",
    # audio and series
    "audio-spectrogram-transformer", "autoformer", "clap", "dac", "data2vec-audio", "encodec", "fastspeech2_conformer",
    "hubert", "informer", "mimi", "moonshine", "patchtsmixer", "patchtst", "sew", "sew-d", "speech_to_text", "speecht5",
    "time_series_transformer", "timesfm", "unispeech", "unispeech-sat", "univnet", "wav2vec2", "wav2vec2-bert",
    "wav2vec2-conformer", "wavlm", "whisper", "xcodec",
    # several modalities
    "align", "altclip", "aria", "aya_vision", "blip", "blip-2", "bridgetower", "chameleon", "chinese_clip", "clip",
    "clipseg", "clvp", "flava", "florence2", "gemma3", "git", "groupvit", "grounding-dino", "idefics", "idefics2",
    "idefics3", "instructblip", "internvl", "janus", "kosmos-2", "layoutlmv2", "layoutlmv3", "llava", "llava_next",
    "lxmert", "mllama", "owlv2", "owlvit", "paligemma", "perceiver", "pixtral", "qwen2_5_vl", "qwen2_audio",
    "qwen2_vl", "siglip", "siglip2", "smolvlm", "tapas", "tvp", "udop", "vilt", "vipllava", "visual_bert", "voxtral",
    "xclip",
)  # fmt: skip


def timm_modules() -> list[str]:
    """One small model of every architecture module of timm."""
    from idfx.bench.zoo.sets.timm import modules

    return [f"timm:{name}" for name in modules()]


def timm_all() -> list[str]:
    """Every model of timm."""
    import timm

    return [f"timm:{name}" for name in timm.list_models()]


def torchvision_all() -> list[str]:
    """Every model of torchvision."""
    from torchvision import models

    return [f"torchvision:{name}" for name in models.list_models()]


def transformers_families() -> list[str]:
    """The families above, as far as the installed release has them."""
    from idfx.sources.transformers import names

    known = set(names())
    return [f"transformers:{name}" for name in FAMILIES if name in known]


def transformers_all() -> list[str]:
    """Every type that AutoModel of transformers has."""
    from idfx.sources.transformers import names

    return [f"transformers:{name}" for name in names()]


def plain_modules() -> list[str]:
    """The factories of plain.py beside this file."""
    from plain import FACTORIES

    return [f"{HERE / 'plain.py'}:{name}" for name in FACTORIES]


def small_models() -> list[str]:
    """The factories of small.py beside this file."""
    from small import FACTORIES

    return [f"{HERE / 'small.py'}:{name}" for name in FACTORIES]


SETS: dict[str, Callable[[], list[str]]] = {
    "timm-modules": timm_modules,
    "timm-all": timm_all,
    "torchvision": torchvision_all,
    "transformers": transformers_families,
    "transformers-all": transformers_all,
    "torch": plain_modules,
    "small": small_models,
}


# Read before the first fork: what takes its time is the import of the libraries, in part at the first use.
WARM = {
    "timm": ("timm:test_vit", {}),
    "torchvision": ("torchvision:squeezenet1_1", {}),
    "transformers": ("transformers:bert", {"tiny": True}),
}


def import_libraries(chosen: str) -> None:
    """Import once, before the fork, what every child needs."""
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    import torch._dynamo

    import idfx.api  # noqa: F401
    from idfx.building.build import build
    from idfx.capture.tracing import capture
    from idfx.core.records import Example

    for library, (spec, arguments) in WARM.items():
        if chosen.startswith(library):
            built = build(spec, arguments=arguments, device="cpu")
            capture(built.model, built.example or Example())


class Stages:
    """Says through a pipe what has been found, stage by stage, so that nothing is lost with the process."""

    def __init__(self, pipe: IO[str]) -> None:
        self.pipe = pipe
        self.seconds: dict[str, float] = {}

    def tell(self, **found: Any) -> None:
        """Send some fields of the line."""
        self.pipe.write(json.dumps(found) + "\n")
        self.pipe.flush()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage; while it runs, the line says that this is where the model was."""
        self.tell(stage=name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 4)
            self.tell(seconds=self.seconds)


def examine(spec: str, stages: Stages, certify_below: int) -> None:
    """Run the stages on one model."""
    from idfx.analysis.structure import build_structure
    from idfx.building.build import build
    from idfx.capture.inputs import no_example
    from idfx.capture.tracing import capture

    with stages.stage("build"):
        arguments = {"tiny": True} if spec.startswith("transformers:") else {}
        built = build(spec, arguments=arguments, device="cpu")
    model = built.model
    size = sum(parameter.numel() for parameter in model.parameters())
    stages.tell(parameters=size, tensors=sum(1 for _ in model.parameters()))
    if built.example is None:
        raise no_example(spec, model, "shell")
    gc.collect()
    with stages.stage("capture"):
        captured = capture(model, built.example, before_real=lambda: built.pending.materialize(model))
    stages.tell(how=captured.how, nodes=len(captured.graph.nodes))
    with stages.stage("analyze"):
        structure = build_structure(captured)
    stages.tell(**summary(structure))
    if captured.how == "meta":
        # A plain run on meta tensors has no answer to `.item()`, unlike the captured one.
        with stages.stage("meta forward"), contextlib.suppress(RuntimeError, NotImplementedError):
            meta_forward(model, built.example)
    if size >= certify_below:
        stages.tell(status="ok", stage="done", proof="not tried: too many parameters")
        return
    prove(model, built, structure, stages)
    stages.tell(status="ok", stage="done")


def prove(model: Any, built: Any, structure: Any, stages: Stages) -> None:
    """Replay, certify after idinit with eps 0 and as it comes, and certify with noise everywhere but at the ends."""
    import torch

    from idfx.api import prove as certify_plan
    from idfx.certification.certificate import certify
    from idfx.planning.apply import apply_
    from idfx.planning.make import make_plan

    with stages.stage("materialize"):
        built.pending.materialize(model)
    with stages.stage("replay"):
        stages.tell(replayed=replayed_somehow(model, structure.capture))
    with stages.stage("noise"):
        generator = torch.Generator().manual_seed(0)
        originals = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                    parameter.mul_(1 + 0.1 * noise).add_(0.02 * noise)
            named = dict(model.named_parameters(remove_duplicate=False))
            for join in structure.joins:
                if join.zeroable:
                    for name in (*(end.parameter for end in join.ends), *join.zeroed_biases):
                        named[name].zero_()
        stages.tell(**outcome("proven", certify(model, structure, eps=0.0)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(originals[name])
        del originals
    with stages.stage("plan"):
        plan = make_plan(structure, "idinit", 0, eps=0.0)
    with stages.stage("apply"):
        apply_(model, plan)
    with stages.stage("certify"):
        stages.tell(**outcome("certified", certify(model, structure, eps=0.0)))
    with stages.stage("bound"):
        plan = make_plan(structure)
        apply_(model, plan)
        found = certify_plan(model, structure, plan)
        stages.tell(**outcome("bounded", found))
        ratios = [c.deviation / c.tolerance for c in found.checks if c.status == "identity" and c.tolerance]
        stages.tell(**{"of the bound": max(ratios, default=0.0)})


def outcome(word: str, certificate: Any) -> dict[str, Any]:
    """The fields that a certificate gives."""
    failed = {c.join: repr(c.deviation) for c in certificate.checks if c.status not in ("identity", "open")}
    return {
        word: certificate.certified,
        f"{word} not": failed,
        f"{word} finite": certificate.finite,
        f"{word} distinct": certificate.distinct,
    }


def replayed_somehow(model: Any, captured: Any) -> str:
    """Replay the graph; where the forward goes another way on the meta device, one captured on real tensors."""
    from idfx.capture.tracing import record

    said = replayed(model, captured)
    if said in ("fresh", "example") or captured.how == "real":
        return said
    again = replayed(model, record(model, captured.example, "real"))
    return again if again in ("fresh", "example") else said


def replayed(model: Any, captured: Any) -> str:
    """Say on which input the captured graph gives the model's own output: a fresh one, the example, or none."""
    import torch

    from idfx.capture.isolation import undisturbed
    from idfx.capture.nested import tensors_in
    from idfx.capture.tracing import replay
    from idfx.certification.certificate import another

    words: list[str] = []
    example: Any
    for name, example in (("fresh", another(captured.example)), ("example", captured.example)):
        try:
            with undisturbed(model):
                copies = torch.utils._pytree.tree_map_only(
                    torch.Tensor, torch.clone, (example.args, dict(example.kwargs))
                )
                torch.manual_seed(0)  # a forward may draw
                own = [t.clone() for t in tensors_in(model(*copies[0], **copies[1]))]
                torch.manual_seed(0)
                found = replay(captured, model, example.args, example.kwargs)
        except Exception as error:
            words.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        pairs = zip(own, found, strict=False)
        if len(own) == len(found) and all(torch.equal(a, b) or a.isnan().any() for a, b in pairs):
            return name
        words.append(f"{name}: other output")
    return "; ".join(words)


def meta_forward(model: Any, example: Any) -> None:
    """One forward pass on the meta device, for comparison."""
    import torch

    from idfx.capture.isolation import undisturbed

    def meta(tensor: Any) -> Any:
        return torch.empty_like(tensor, device="meta")

    tensors = {
        name: meta(tensor) for found in (model.named_parameters(), model.named_buffers()) for name, tensor in found
    }
    args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, meta, (example.args, dict(example.kwargs)))
    with undisturbed(model):
        torch.func.functional_call(model, tensors, args, kwargs)


def summary(structure: Any) -> dict[str, Any]:
    """What there is to say about a structure, in numbers and a few names."""
    count = collections.Counter
    opened = [join for join in structure.joins if not join.zeroable]
    odd = {
        role: [
            f"{name} {list(structure.parameters[name].shape)}"
            for name, found in structure.roles.items()
            if found.name == role
        ]
        for role in ("unresolved", "other", "unused")
    }
    sites = {site.parameter: f"{site.operator} in {site.module}" for site in structure.sites}
    return {
        "unknown": {u.operator: [len(u.sites), *dict.fromkeys(u.sites[:3])] for u in structure.unknown},
        "joins": len(structure.joins),
        "kinds": dict(count(join.kind for join in structure.joins)),
        "sums": dict(count(join.kind for join in structure.sums)),
        "sum modules": {
            kind: [join.name for join in structure.sums if join.kind == kind][:5]
            for kind in sorted({join.kind for join in structure.sums})
        },
        "zeroable": sum(join.zeroable for join in structure.joins),
        "open": dict(count(general(join.reason) for join in opened)),
        "open joins": {join.name: join.reason for join in opened[:8]},
        "nested": sum(join.parent is not None for join in structure.joins),
        "depth one": [
            [join.name, join.kind, join.fork, [end.parameter for end in join.ends][:4]]
            for join in structure.joins
        ][:12],
        "roles": dict(count(role.name for role in structure.roles.values())),
        "odd": {role: [len(names), *names[:5]] for role, names in odd.items() if names},
        "unresolved at": [
            sites.get(name.split(" ")[0], "no site") for name in odd["unresolved"][:5]
        ],
        "sites": len(structure.sites),
    }  # fmt: skip


def general(reason: str) -> str:
    """Return a reason without the names in it, so that like can be counted with like."""
    return re.sub(r"\S*[._\d]\S*", "…", reason)


def run_one(spec: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the line of one model, examined in a forked process."""
    reading, writing = os.pipe()
    start = time.perf_counter()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            code = in_child(spec, writing, options.certify_below)
        finally:
            os._exit(code)
    os.close(writing)
    line: dict[str, Any] = {"spec": spec, "status": "died", "stage": "start"}
    verdict = watch(child, reading, line, options, start)
    _, status, usage = os.wait4(child, 0)
    if verdict:
        line["status"], line["error"] = verdict, f"in stage {line['stage']}"
    elif line["status"] == "died":
        line["error"] = f"in stage {line['stage']}: exit status {status}"
    line["wall"], line["peak MiB"] = round(time.perf_counter() - start, 2), usage.ru_maxrss // 1024
    return line


def in_child(spec: str, writing: int, certify_below: int) -> int:
    """Examine, and send what there is to say about a crash."""
    import warnings

    warnings.simplefilter("ignore")
    os.setpgrp()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    with os.fdopen(writing, "w") as pipe:
        stages = Stages(pipe)
        try:
            examine(spec, stages, certify_below)
        except BaseException as error:
            innermost: BaseException = error
            while innermost.__cause__ is not None:
                innermost = innermost.__cause__
            frames = [
                f"{Path(f.filename).parent.name}/{Path(f.filename).name}:{f.lineno} {f.name}"
                for f in traceback.extract_tb(innermost.__traceback__)
            ]
            stages.tell(
                status="error",
                error=f"{type(error).__name__}: {' '.join(str(error).split())[:600]}",
                cause=f"{type(innermost).__name__}: {' '.join(str(innermost).split())[:300]}",
                at=frames[-4:],
            )
    return 0


def watch(child: int, reading: int, line: dict[str, Any], options: argparse.Namespace, start: float) -> str:
    """Take what a child sends into its line; kill it beyond its limits and say which."""
    rest = b""
    verdict = ""
    while True:
        ready, _, _ = select.select([reading], [], [], 0.2)
        if ready:
            read = os.read(reading, 1 << 16)
            if not read:
                break
            *whole, rest = (rest + read).split(b"\n")
            for text in whole:
                line.update(json.loads(text))
        if not verdict:
            if time.perf_counter() - start > options.seconds:
                verdict = "timeout"
            elif resident(child) > options.memory * 2**20:
                verdict = "memory"
            if verdict:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
    os.close(reading)
    return verdict


def resident(process: int) -> int:
    """Return the resident memory of a process in bytes, 0 where it cannot be read."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * resource.getpagesize()


def table(files: Sequence[str]) -> None:
    """Print one row per model."""
    rows = {}
    for file in files:
        for text in Path(file).read_text().splitlines():
            line = json.loads(text)
            rows[line["spec"]] = line
    head = ("model", "status", "captured", "nodes", "unknown", "joins", "zeroable", "certified", "proven", "s", "MiB")
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for spec, line in rows.items():
        kinds = ", ".join(f"{number} {kind}" for kind, number in line.get("kinds", {}).items())
        cells = (
            spec, line["status"], line.get("how", ""), line.get("nodes", ""), ", ".join(line.get("unknown", {})), kinds,
            line.get("zeroable", ""), line.get("certified", ""), line.get("proven", ""), line["wall"], line["peak MiB"],
        )  # fmt: skip
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


def main() -> None:
    """Sweep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", dest="chosen", choices=sorted(SETS), help="the models")
    parser.add_argument("--spec", action="append", default=[], help="a single model; may be repeated")
    parser.add_argument("--only", metavar="PATTERN", help="only the models whose SPEC this regular expression finds")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only the K-th of every N models")
    parser.add_argument("-o", "--output", metavar="FILE.jsonl", help="where to add the lines; else standard output")
    parser.add_argument("--resume", action="store_true", help="leave out the models that the output already has")
    parser.add_argument("--certify-below", type=int, default=40_000_000, metavar="N", help="prove below N parameters")
    parser.add_argument("--seconds", type=float, default=120.0, help="wall-time limit of one model")
    parser.add_argument("--memory", type=float, default=6000.0, metavar="MIB", help="memory limit of one model")
    parser.add_argument("--table", nargs="+", metavar="FILE.jsonl", help="print the rows of these files and end")
    options = parser.parse_args()
    if options.table:
        table(options.table)
        return
    for folder in (HERE, ROOT):
        sys.path.insert(0, str(folder))
    import_libraries(options.chosen or "")
    specs = [*options.spec, *(SETS[options.chosen]() if options.chosen else [])]
    if options.only:
        specs = [spec for spec in specs if re.search(options.only, spec)]
    part, parts = map(int, options.part.split("/"))
    specs = specs[part - 1 :: parts]
    output = Path(options.output) if options.output else None
    if options.resume and output is not None and output.exists():
        done = {json.loads(text)["spec"] for text in output.read_text().splitlines()}
        specs = [spec for spec in specs if spec not in done]
    gc.collect()
    gc.freeze()
    for number, spec in enumerate(specs, 1):
        line = run_one(spec, options)
        text = json.dumps(line)
        if output is None:
            print(text)
        else:
            with output.open("a") as file:
                file.write(text + "\n")
            told = "/".join(str(line.get(key, "-")) for key in ("certified", "proven", "zeroable", "joins"))
            print(f"{number}/{len(specs)} {spec} {line['status']} {told} {line['wall']} s {line.get('error', '')}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
