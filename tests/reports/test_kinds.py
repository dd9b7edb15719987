"""Questions are grouped by length, number of golds and source."""

import pytest

from rqa_ray.data.schema import Document
from rqa_ray.reports import kinds


def test_lengths_of_questions_go_from_short_to_long():
    names = ["over 20", "11 to 20", "6 to 10", "1 to 5"]
    assert sorted(names, key=kinds._order) == names[::-1]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://a.b/c#d", "a.b"),
        ("docs/a.md", "docs"),
        ("/data/docs/a.md", "data"),
        ("https://[REDACTED]/page", "https://[REDACTED]/page"),
        (None, "none"),
        ("x" * 5000, "x" * 60),
    ],
)
def test_any_source_has_a_short_name(source, name):
    assert kinds._source(Document("text", "", {"source": source})) == name
