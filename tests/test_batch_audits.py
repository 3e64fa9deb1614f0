"""What the metrics of a batch find, with defects put in, and the program around them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import idfx
from idfx.audits.metric import METRICS
from idfx.report import json as report

Run = Callable[[str], tuple[int, str, str]]


def mlp(depth: int = 4, width: int = 32, gain: float = math.sqrt(2)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=gain / math.sqrt(width))
            nn.init.zeros_(module.bias)
    return model


def told(model: nn.Module, *inputs: Tensor, **options: object) -> list[tuple[str, str, str, str]]:
    audit = idfx.audit(model, inputs, only=["forward", "backward", "jacobian"], **options)  # type: ignore[arg-type]
    return [(found.severity, found.metric, found.parameter, found.site) for found in audit.findings]


def test_a_sound_network_has_no_finding() -> None:
    assert told(mlp(), torch.randn(64, 32)) == []


def test_numbers_that_are_not_finite_are_told_at_the_first_place() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    assert ("error", "forward", "2.weight", "2") in told(model, torch.randn(8, 32))


def test_gradients_that_are_not_finite_are_told_though_the_values_are() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(self.fc(x) * 0)

    assert [found[:3] for found in told(Root(), torch.randn(8, 4)) if found[0] == "error"] == [
        ("error", "backward", "fc.weight")
    ]


@pytest.mark.parametrize(("gain", "words"), [(6.0, "explodes"), (0.2, "vanishes")])
def test_gradients_that_explode_or_vanish_are_told_with_their_slope(gain: float, words: str) -> None:
    model = mlp(depth=12, gain=gain)
    audit = idfx.audit(model, (torch.randn(64, 32),), only=["backward"])
    (found,) = audit.findings
    assert found.severity == "warning" and words in found.message and found.parameter == "0.weight"
    # Each layer multiplies the norm by gain / √2: half of the units are off.
    slope = audit.measures["backward"]["log10 of gradient per block"]
    assert slope == pytest.approx(math.log10(gain / math.sqrt(2)), abs=0.05)


def test_a_variance_that_grows_is_told() -> None:
    audit = idfx.audit(mlp(depth=12, width=256, gain=5.0), (torch.randn(64, 256),), only=["forward"])
    slope = audit.measures["forward"]["log10 of variance per block"]
    assert slope == pytest.approx(math.log10(25 / 2), abs=0.05)
    assert any(f.severity == "warning" and f"{slope:.3g} ±" in f.message for f in audit.findings)


def test_saturated_gates_are_told_where_they_stand() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.gate(x)) * self.value(x)

    model = Gated()
    assert told(model, torch.randn(32, 8)) == []
    nn.init.constant_(model.gate.bias, 50.0)
    found = idfx.audit(model, (torch.randn(32, 8),), only=["forward"]).at_least("error")
    assert len(found) == 1 and "sigmoid" in found[0].message and found[0].value == 1


def test_attention_that_picks_one_place_is_told() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unsqueeze(1) for f in (self.q, self.k, self.v))
            return nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)

    torch.manual_seed(0)
    model, x = Attention(), torch.randn(4, 16, 8)
    assert told(model, x) == []
    with torch.no_grad():
        model.q.weight *= 1e4
    assert any(found[:2] == ("error", "forward") or found[:2] == ("warning", "forward") for found in told(model, x))


def test_units_that_are_off_for_the_batch_silence_the_weights_before_them() -> None:
    model = mlp()
    nn.init.constant_(model[2].bias, -1000.0)
    found = told(model, torch.randn(64, 32))
    assert ("error", "forward", "2.weight", "3") in found
    assert {("warning", "backward", f"{layer}.weight", f"{layer}") for layer in (0, 2)} <= set(found)


def test_zeros_that_keep_a_gradient_away_are_no_finding_of_the_batch() -> None:
    model = mlp()
    nn.init.zeros_(model[-1].weight)
    assert not [found for found in told(model, torch.randn(64, 32)) if found[1] == "backward"]


def test_an_activation_of_zeros_from_a_closed_scale_is_not_asleep() -> None:
    class Excited(nn.Module):
        """A branch that ends in a scale of 0 and a squeeze-excite, as timm's ByobNet has it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 32, 3, padding=1), nn.BatchNorm2d(32)
            self.one, self.two, self.skip = nn.Linear(32, 32), nn.Linear(32, 32), nn.Conv2d(4, 32, 1)
            nn.init.zeros_(self.norm.weight)
            nn.init.zeros_(self.one.bias)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            gate = torch.sigmoid(self.two(torch.relu(self.one(y.mean((2, 3))))))
            return self.skip(x) + y * gate[:, :, None, None]

    found = told(Excited(), torch.randn(8, 4, 6, 6))
    assert not [one for one in found if one[0] in ("error", "warning")]


def test_a_lost_input_is_told_at_the_place_where_it_is_lost() -> None:
    model = mlp()
    nn.init.constant_(model[4].bias, 1e5)
    found = told(model, torch.randn(64, 32))
    assert ("warning", "forward", "4.weight", "4") in found


def test_a_block_that_multiplies_is_told() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc(x)

    model = nn.Sequential(Wide(), Wide())
    nn.init.orthogonal_(model[0].fc.weight, 1e-3)
    nn.init.orthogonal_(model[1].fc.weight, 30.0)
    audit = idfx.audit(model, (torch.randn(4, 32),), only=["jacobian"])
    (found,) = audit.findings
    assert (found.severity, found.parameter, found.site) == ("warning", "1.fc.weight", "1")
    expected = torch.linalg.svdvals(torch.eye(32) + model[1].fc.weight.detach()).square().mean()
    assert abs(found.value - float(expected)) < 4 * audit.spectra[2].mean_square_error
    assert [spectrum.place for spectrum in audit.spectra] == ["", "0", "1"]


def test_everything_is_the_same_twice_and_the_model_as_it_was() -> None:
    from idfx.report import json as json_report

    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (idfx.audit(model, (torch.ones(8, 32),), also=["curvature"]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    texts = [json.loads(json_report.audit(one)) for one in (first, second)]
    for one in texts:
        assert one.pop("seconds").keys() == {*first.metrics, "batch"}
    assert texts[0] == texts[1] and model.training


def test_without_a_batch_nothing_of_it_is_told() -> None:
    audit = idfx.audit(mlp(), (torch.randn(8, 32),), batch=False)
    assert audit.batch is None and not audit.profile and not audit.spectra
    waiting = {name for name, metric in METRICS.items() if metric.batch and not metric.on_request}
    assert waiting and {name for name in audit.left_out if name != "uninitialised"} == waiting


def test_a_budget_that_runs_out_is_told_and_the_rest_stays() -> None:
    audit = idfx.audit(mlp(), (torch.randn(8, 32),), budget=1e-9)
    assert "budget ran out" in audit.left_out["forward"] and "scale" in audit.metrics


def test_curvature_is_the_largest_eigenvalue_and_only_on_request() -> None:
    model = nn.Linear(3, 1, bias=False)
    x = torch.randn(16, 3)
    audit = idfx.audit(model, (x,), also=["curvature"])
    # ½ ∂² of mean((xw − t)²) is xᵀx / n.
    expected = float(torch.linalg.eigvalsh(2 * x.T @ x / 16)[-1])
    assert audit.measures["curvature"]["largest eigenvalue"] == pytest.approx(expected, rel=1e-4)
    assert audit.measures["curvature"]["largest stable step"] == pytest.approx(2 / expected, rel=1e-4)
    assert "curvature" not in idfx.audit(model, (x,)).measures


def test_models_without_anything_to_differentiate_say_so() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.argmax(-1, keepdim=True).float().expand(-1, 4))

    audit = idfx.audit(Constant(), (torch.randn(4, 4),))
    assert "no output depends on an input" in audit.left_out["jacobian"] and "forward" in audit.metrics


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """A model in a file, small enough to be audited many times."""
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\n"
        "from torch import nn\n"
        "example_inputs = (torch.randn(1, 16),)\n"
        "class Block(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 16)\n"
        "    def forward(self, x):\n"
        "        return x + torch.relu(self.fc(self.norm(x)))\n"
        "def good():\n"
        "    return nn.Sequential(Block(), Block(), nn.Linear(16, 4))\n"
        "def bad():\n"
        "    model = good()\n"
        "    nn.init.constant_(model[1].norm.weight, float('nan'))\n"
        "    return model\n"
    )
    return str(path)


def schema_holds(text: str) -> dict[str, object]:
    from idfx.report.schema import audit_schema

    found: dict[str, object] = json.loads(text)
    jsonschema.validate(found, audit_schema())
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(verdict="good"),
        lambda d: d.update(other=1),
        lambda d: d.pop("seconds"),
        lambda d: d["parameters"][0].pop("ratio"),
        lambda d: d["parameters"][0].update(rms="0"),
        lambda d: d["profile"][0].update(kind="place"),
        lambda d: d["batch"]["shapes"].append(3),
        lambda d: d["spectra"][0]["density"].append([1.0]),
    ],
)
def test_the_schema_of_an_audit_refuses_what_is_none(change: Callable[[Any], object]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    text = report.audit(idfx.audit(model, (torch.randn(8, 4),)))
    document = schema_holds(text)
    change(document)
    with pytest.raises(jsonschema.ValidationError):
        schema_holds(json.dumps(document))


def test_json_is_what_its_schema_says(run: Run, spec: str) -> None:
    code, out, _ = run(f"audit {spec}:good --json")
    found = schema_holds(out)
    assert code == 0 and found["batch"]["samples"] == 64 and len(found["spectra"]) == 3  # type: ignore[index,arg-type]
    code, out, _ = run(f"audit {spec}:bad --json --batch none")
    assert code == 1 and schema_holds(out)["verdict"] == "error"
    assert run("audit --schema")[1].strip().startswith("{")


def test_several_models_stand_side_by_side(run: Run, spec: str) -> None:
    code, out, _ = run(f"audit {spec}:good {spec}:bad --json")
    found = schema_holds(out)
    assert code == 1
    assert [one["label"] for one in found["audits"]] == [f"{spec}:good", f"{spec}:bad"]  # type: ignore[attr-defined]
    code, out, _ = run(f"audit {spec}:good {spec}:good")
    heading = next(line for line in out.splitlines() if line.startswith("measure"))
    assert code == 0 and heading.count(f"{spec}:good") == 2


def test_schemes_stand_side_by_side(run: Run, spec: str) -> None:
    _, out, _ = run(f"audit {spec}:good --scheme kaiming --scheme idinit --json --only branches,jacobian")
    audits = schema_holds(out)["audits"]
    assert [one["label"].rpartition(" ")[2] for one in audits] == ["kaiming", "idinit"]  # type: ignore[attr-defined]
    closed = [one["measures"]["branches"]["closed"] for one in audits]  # type: ignore[attr-defined]
    assert closed == [0, 2]
    blocks = [one["spectra"][1]["spread"] for one in audits]  # type: ignore[attr-defined]
    assert blocks[1] == pytest.approx(0, abs=1e-3) and blocks[0] > 0.1


def test_against_a_scheme_only_the_model_itself_is_judged(run: Run, spec: str) -> None:
    code, out, _ = run(f"audit {spec}:bad --against idinit --json --only finite,forward")
    own, other = schema_holds(out)["audits"]  # type: ignore[misc]
    assert code == 1 and own["verdict"] == "error" and other["verdict"] == "clean"
    code, _, _ = run(f"audit {spec}:good --against orthogonal --batch none")
    assert code == 0


def test_annotations_of_github(run: Run, spec: str) -> None:
    code, out, _ = run(f"audit {spec}:bad --github --only finite")
    assert code == 1
    assert out.startswith(f"::error file={spec},title=idfx finite%3A 1.norm.weight::{spec}:bad: ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--scheme idinit --against kaiming", "expected one of them"),
        ("--scheme idinti", "Did you mean idinit"),
        ("--batch nowhere.png", "no such file"),
        ("--only frward", "Did you mean forward"),
        ("--github --json", "expected one of them"),
        ("--budget 0", "not a time"),
        ("--batch none --batch-size 3", "--batch-size and --batch none: both are given"),
        ("--input-shape 2,8 --batch-size 3", "--batch-size and --input-shape: both are given"),
        ("--seed 99999999999999999999", "is not in the range"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, spec: str, line: str, words: str) -> None:
    code, out, err = run(f"audit {spec}:good {line}")
    assert code == 2 and not out and words in err and "Traceback" not in err


def test_the_terminal_shows_a_profile(run: Run, spec: str) -> None:
    _, out, _ = run(f"audit {spec}:good --batch-size 8")
    assert "batch: standard normal, 8 × 16" in out
    assert any(line.startswith("log10 variance") and "▁" in line for line in out.splitlines())
