"""The tables that tests make without Ray are the ones that the readers make."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.builders import COLUMNS


def readers_schemas() -> dict[str, pa.Schema]:
    """SCHEMAS of the readers' source, run without the imports around it: Ray's take seconds."""
    spec = importlib.util.find_spec("rqa_ray.data.readers")
    assert spec and spec.origin
    names: dict[str, Any] = {"pa": pa}
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and "SCHEMAS" not in names:
            exec(compile(ast.Module([statement], []), spec.origin, "exec"), names)
    return names["SCHEMAS"]


def test_the_builders_have_the_columns_and_types_of_the_readers():
    schemas = readers_schemas()
    assert COLUMNS.keys() == schemas.keys()
    for kind, schema in schemas.items():
        assert COLUMNS[kind] == dict(zip(schema.names, schema.types, strict=True))
