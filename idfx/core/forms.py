"""The forms of files as pydantic models: one place reads them, words what is wrong, and gives their JSON Schema.

pydantic takes its time to load, so this module is imported where a file is read or a schema is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AllowInfNan, BaseModel, ConfigDict, Strict, TypeAdapter, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from idfx.core.errors import IdfxError, UsageError
from idfx.core.registry import did_you_mean

F = TypeVar("F", bound=BaseModel)

# Not by Field(strict=True): pydantic 2.6 would keep the default of one field in it, and give it to all others.
Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]

# What is expected, by pydantic's type of error; for any other, in pydantic's own words.
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "missing": "a value",
    "greater_than_equal": "a number from {ge:g}",
    "greater_than": "a number above {gt:g}",
    "less_than": "a number below {lt:g}",
    "too_short": "{min_length} or more entries",
    "too_long": "{max_length} entries or fewer",
    "literal_error": "{expected}",
}


class Form(BaseModel):
    """An object of a file; a key that it does not know is an error that says which ones it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        known = cls.model_fields
        for key in value if isinstance(value, Mapping) and cls.model_config["extra"] == "forbid" else ():
            if key not in known:
                told = f"{key!r}; expected {', '.join(known)}.{did_you_mean(str(key), known)}"
                raise PydanticCustomError("unknown_key", "{told}", {"told": told})
        return value


def read(form: type[F], value: object, subject: str, error: type[IdfxError] = UsageError) -> F:
    """Return a form filled with plain values.

    Args:
        form: the model.
        value: as JSON or TOML gives it.
        subject: what to call it in errors, its path as a rule.
        error: the class of the error.

    Raises:
        IdfxError: of this class; the message names the first entry that does not fit.

    Example:
        >>> class Size(Form):
        ...     width: Whole
        >>> read(Size, {"width": 3}, "size.json")
        Size(width=3)
        >>> read(Size, {"width": "3"}, "size.json")
        Traceback (most recent call last):
        idfx.core.errors.UsageError: size.json: width is '3'; expected a whole number. Correct it.
    """
    try:
        return form.model_validate(value)
    except ValidationError as failed:
        raise error(_told(failed.errors(include_url=False)[0], value, subject)) from failed


def _told(found: ErrorDetails, value: object, subject: str) -> str:
    """Word an error in one line."""
    missing = found["type"] == "missing"
    path = " → ".join(map(str, _path(found["loc"], value, missing)))
    where = f"{subject}: {path}" if path else subject
    if found["type"] == "unknown_key":
        return f"{where}: unknown key {found['msg']} Correct it or leave it out."
    expected = _EXPECTED.get(found["type"], found["msg"].removeprefix("Input should be "))
    expected = expected.format_map(found.get("ctx", {})) if found["type"] in _EXPECTED else expected
    return f"{where} is {'missing' if missing else _shown(found['input'])}; expected {expected}. Correct it."


def _shown(value: object) -> str:
    """What was found, short enough for a line."""
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _path(loc: tuple[int | str, ...], value: Any, missing: bool) -> list[int | str]:
    """The way to an entry, without the names that pydantic puts in for the members of a union."""
    path: list[int | str] = []
    for key in loc:
        listed = isinstance(value, (list, tuple)) and isinstance(key, int)
        if listed or (isinstance(value, Mapping) and key in value):
            value = value[key]
            path.append(key)
    return [*path, loc[-1]] if missing else path


class FormSchema(GenerateJsonSchema):
    """JSON Schema without a title for every property, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False."""
        return False


def json_schema(form: Any, title: str, generator: type[GenerateJsonSchema] = FormSchema) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what is written in a form.

    Args:
        form: a model, or a union of them.
        title: of the schema.
        generator: how the types are put.
    """
    schema = TypeAdapter(form).json_schema(mode="serialization", schema_generator=generator)
    return {"$schema": generator.schema_dialect, **schema, "title": title}
