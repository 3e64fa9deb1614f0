"""The form of a plan's file, from which its JSON Schema comes (`idfx plan --schema`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from idfx.core.forms import Form, Number, Text, Whole, json_schema


def _no_keep(fill: str) -> str:
    if fill == "keep":
        raise PydanticCustomError("keep", 'a fill (to keep it, write "keep": "your reason" in its place)')
    return fill


def _kind(entry: Any) -> str | None:
    """The kind of an entry, one of three; a form that was read has it in its class."""
    kinds = {"fill": "filled", "keep": "kept", "load": "loaded"}
    found = [kind for key, kind in kinds.items() if (key in entry if isinstance(entry, dict) else hasattr(entry, key))]
    return found[0] if len(found) == 1 else None


Shape = Annotated[list[Annotated[Whole, Field(ge=0)]], Field(description="Shape of the parameter.")]
Fill = Annotated[Text, AfterValidator(_no_keep), WithJsonSchema({"type": "string", "not": {"const": "keep"}})]
Rows = list[Annotated[list[Whole], Field(min_length=2, max_length=2)]]


class Filled(Form):
    """A parameter that is written."""

    shape: Shape
    fill: Fill = Field(description="Name of the fill.")
    arguments: dict[str, Any] = Field({}, description="Arguments of the fill.")
    reason: Text = Field("by hand", description="Why this fill.")
    evidence: Text = Field("", description="What the role of the parameter rests on.")


class Kept(Form):
    """A parameter that stays as it is."""

    shape: Shape
    keep: Text = Field(description="Why the parameter stays as it is.")


class Loaded(Form):
    """A parameter that is taken from a checkpoint."""

    shape: Shape
    load: Text = Field(description="Name of the checkpoint that the parameter is taken from.")


Entry = Annotated[
    Annotated[Filled, Tag("filled")] | Annotated[Kept, Tag("kept")] | Annotated[Loaded, Tag("loaded")],
    Discriminator(
        _kind, custom_error_type="entry", custom_error_message="an object with exactly one of fill, keep and load"
    ),
]


class Multiplied(Form):
    """What a learned scalar multiplies."""

    parameter: Text
    rows: Rows | None = Field(None, description="Half-open ranges of its outputs; all of them without.")
    added: Number = Field(0.0, description="What the model adds to it; the scalar multiplies the sum.")


class LearnedScalar(Form):
    """A learned scalar on a residual branch."""

    join: Text = Field(description="Residual join whose branch it multiplies.")
    value: Number = Field(description="What it starts at.")
    on: list[Multiplied] = Field(min_length=1)


class PlanFile(Form):
    """What idfx writes into each parameter of a model, and why.

    Made by `idfx plan SPEC -o plan.json`, applied by `idfx init SPEC --plan plan.json`.
    """

    idfx_plan: Literal[1] = Field(description="Version of this form.")
    idfx_version: Text = Field("", description="Version of idfx that made the plan.")
    model: Text = Field(description="Class of the model.")
    scheme: Text = Field(description="Scheme that made the plan; see `idfx list schemes`.")
    seed: Whole = Field(description="Seed of every random fill.")
    options: dict[str, Any] = Field(description="Options of the scheme.")
    notes: list[Text] = Field([], description="Remarks on the plan as a whole.")
    roles: dict[str, Text] = Field({}, description="Roles set by --role, by parameter.")
    scalars: list[LearnedScalar] = Field([], description="Learned scalars that are added to residual branches.")
    parameters: dict[str, Entry] = Field(description="One entry per parameter, in the model's order.")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of plans."""
    return json_schema(PlanFile, "idfx plan")
