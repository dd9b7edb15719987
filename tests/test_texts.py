"""How values and commands are written for people."""

import json
import shlex
from dataclasses import dataclass

from rqa_ray.texts import command, html_table, result_text


def test_a_printed_command_can_be_typed_as_it_stands():
    words = ["jobs/train.py", "--output_dir", "/my runs/a", "--query_prefix", "it's: "]
    assert shlex.split(command(*words)) == ["python", *words]


def test_a_table_of_a_notebook_shows_text_as_text_and_few_digits():
    assert html_table(["a<b"], [[0.123456]]) == "<table><tr><th>a&lt;b</th></tr><tr><td>0.123</td></tr></table>"


def test_a_result_is_printed_for_a_person_or_for_a_program():
    @dataclass
    class Result:
        questions: int

        def describe(self) -> str:
            return f"{self.questions:,} questions\nwritten: out"

    assert result_text(Result(1000), as_json=False) == "1,000 questions\nwritten: out"
    assert json.loads(result_text(Result(1000), as_json=True)) == {"questions": 1000}
