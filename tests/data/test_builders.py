"""The tables that tests make are the ones that the readers make."""

from rqa_ray.data.token_tables import SCHEMAS
from tests.builders import COLUMNS


def test_the_builders_have_the_columns_and_types_of_the_readers():
    assert COLUMNS.keys() == SCHEMAS.keys()
    for kind, schema in SCHEMAS.items():
        assert COLUMNS[kind] == dict(zip(schema.names, schema.types, strict=True))
