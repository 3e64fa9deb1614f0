"""The JSON Schema of what `idfx audit --json` prints, from the records that are printed."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from idfx.core.findings import Audit
from idfx.core.forms import FormSchema, json_schema


@dataclass(frozen=True)
class SeveralAudits:
    """Several audits with their labels."""

    idfx_version: str
    audits: tuple[Audit, ...]


class RecordSchema(FormSchema):
    """Records as they are printed: every field and property is there, and a number that is not finite is null."""

    def float_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a number."""
        return {"type": ["number", "null"]}

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a record."""
        record = schema["cls"]
        made = super().dataclass_schema(schema)
        for name, one in inspect.getmembers(record, lambda member: isinstance(member, property)):
            kind = typing.get_type_hints(one.fget)["return"]
            made["properties"][name] = self.generate_inner(TypeAdapter(kind).core_schema)
        described = {"description": inspect.getdoc(record)}
        return made | described | {"required": [*made["properties"]], "additionalProperties": False}


def audit_schema() -> dict[str, Any]:
    """Return the JSON Schema of one audit with the version, or of several with their labels."""
    schema = json_schema(Audit | SeveralAudits, "What idfx audit --json prints", RecordSchema)
    schema["$defs"]["Audit"]["properties"] |= {"idfx_version": {"type": "string"}, "label": {"type": "string"}}
    return schema
