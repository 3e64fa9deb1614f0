"""Models of timm: a small one of every module, and what is well known besides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from idfx.bench.zoo import Learner, zoo_set
from idfx.bench.zoo.problems import CLASSES, logits_of, pictures
from idfx.building.build import build
from idfx.core.errors import IdfxError, SourceError, shortened
from idfx.core.literals import parse_call
from idfx.core.records import Example
from idfx.sources import standard_normal

SIDE = 64
BATCH = 8
PIXELS = BATCH * SIDE * SIDE  # of a batch; four times as many where a model takes nothing smaller

# What small models are called, the best hint first.
SMALL = (
    "test", "atto", "femto", "pico", "nano", "zepto", "tiny", "micro", "_00", "_0", "_m0", "_b0", "_s0", "_t0", "_xxs",
    "_xs", "_t_", "_t$", "(?<!\\d)18(?!\\d)", "_s_", "_s$", "_s\\d\\d_", "small", "_p$", "_p_", "(?<!\\d)14(?!\\d)",
    "(?<!\\d)26(?!\\d)", "_n_", "_n$", "_l1$", "_a0", "_a1", "_m1", "_m$",
)  # fmt: skip
WELL_KNOWN = (
    "resnet18", "resnet26d", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0", "regnety_002", "repvgg_a0",
    "mobilenetv3_small_050", "mixer_s32_224", "nf_regnet_b0", "swin_tiny_patch4_window7_224", "maxvit_pico_rw_256",
    "mobilevit_xxs", "densenet121", "vit_relpos_small_patch16_224",
)  # fmt: skip


# Modules whose smallest model is large, made small; and those that stay too large for a step to take a second.
_LARGE = (
    "beit_base_patch16_224", "gemma4_vit_167m", "naflexvit_base_patch16_gap", "qwen3_vit_88m", "samvit_base_patch16",
)  # fmt: skip
SHRUNK = dict.fromkeys(_LARGE, "embed_dim=192, depth=4, num_heads=3")
LEFT_OUT = ("deepseek_vit_412m", "mobilenetv5_300m", "nasnetalarge", "pnasnet5large", "vgg11")


def smallest(names: Sequence[str]) -> str:
    """Return the name that sounds smallest.

    Example:
        >>> smallest(["vit_base", "vit_tiny", "vit_large"])
        'vit_tiny'
    """

    def rank(name: str) -> tuple[int, int, str]:
        found = (place for place, hint in enumerate(SMALL) if re.search(hint, name))
        return next(found, len(SMALL)), len(name), name

    return min(names, key=rank)


def modules() -> list[str]:
    """Return one small model of every architecture module of timm."""
    import timm

    return [smallest(timm.list_models(module=module)) for module in timm.list_modules()]


def names() -> list[str]:
    """Return well-known models, and one small model of every module, without those that are too large."""
    import timm

    found = dict.fromkeys([*(name for name in WELL_KNOWN if timm.is_model(name)), *modules()])
    return [f"{name}({SHRUNK[name]})" if name in SHRUNK else name for name in found if name not in LEFT_OUT]


def _attempts() -> Iterator[tuple[Mapping[str, object], int | None]]:
    """Arguments of a model and the side of its images: the small side, if it takes that, and otherwise its own."""
    yield {"img_size": SIDE}, SIDE
    yield {}, SIDE
    for side in (56, 2 * SIDE):  # a multiple of 14, and one of windows and strides
        yield {"img_size": side}, side
    yield {}, None


def _runs(model: nn.Module, example: Example) -> None:
    """Run a step forwards and backwards, and forget it."""
    model.train()
    logits_of(CLASSES)(model(*example.args)).sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)


@zoo_set("timm", names)
def learner(name: str, seed: int) -> Learner:
    """Models of timm on patterns in noise, at 64 × 64 pixels or what they take."""
    name, options = parse_call(name, f"model timm:{name}")
    told: IdfxError | None = None
    for arguments, side in _attempts():
        try:
            built = build(
                f"timm:{name}", arguments={"num_classes": CLASSES, **arguments, **options}, device="cpu", seed=seed
            )
        except IdfxError as error:
            told = told or error
            continue
        assert built.example is not None
        channels, height, width = built.example.args[0].shape[1:]
        shape = (channels, side or height, side or width)
        built.pending.materialize(built.model)
        example = Example((standard_normal(2, *shape),))
        state = {key: value.clone() for key, value in built.model.state_dict().items()}
        try:
            _runs(built.model, example)
        except Exception as error:
            told = told or SourceError(f"timm:{name}: {shortened(error)}; expected it to take images of {shape}.")
            continue
        built.model.load_state_dict(state)
        room = PIXELS if side == SIDE else 4 * PIXELS
        batch = max(4, min(BATCH, room // (shape[1] * shape[2])))
        return Learner(built.model, example, pictures(shape, batch, seed), {"input": [batch, *shape]})
    assert told is not None
    raise told
