"""The types of values in a JSON config, and of keyword arguments."""

import json
from pathlib import Path

import pytest

from rqa_ray.command_line import parse
from rqa_ray.errors import InputError
from tests.test_command_line import Example, error_of


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"fast": []}, "fast []: has to be a single value"),
        ({"count": [1]}, "count [1]: has to be a single value"),
        ({"count": {}}, "count {}: has to be a single value"),
        ({"count": True}, "count True: has to be a text or a number"),
        ({"prefix": False}, "prefix False: has to be a text or a number"),
        ({"prefix": ["a", "b"]}, "prefix ['a', 'b']: has to be a single value"),
        ({"folder": True}, "folder True: has to be a path"),
        ({"folder": {}}, "folder {}: has to be a single value"),
        ({"folder": 5}, "folder 5: has to be a path"),
        ({"files": [["x"]]}, "files [['x']]: has to be a list of single values"),
        ({"files": [True]}, "files [True]: has to be a path"),
        (
            {"files": ["-x.jsonl"]},
            "files ['-x.jsonl']: has to be a list of words without a dash in front",
        ),
    ],
)
def test_a_value_of_another_type_is_one_line_in_a_config_and_as_a_keyword_argument(values, wanted, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"folder": "a", **values}))
    assert error_of(str(tmp_path / "a.json")).startswith(f"{tmp_path}/a.json: {wanted}")
    with pytest.raises(InputError) as error:
        parse(Example, {"folder": "a", **values})
    assert str(error.value).startswith(wanted)


def test_values_that_a_command_line_could_have_are_taken_from_keyword_arguments_too():
    found = parse(Example, {"folder": Path("a"), "sizes": (1, 2), "files": Path("f"), "fast": "yes", "prefix": 5})
    assert (found.folder, found.sizes, found.files, found.fast, found.prefix) == ("a", [1, 2], ["f"], True, "5")
