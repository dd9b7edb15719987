"""How values and commands are written for people."""

import shlex

from rqa_ray.errors import InputError
from rqa_ray.texts import command, html_table, printable


def test_a_printed_command_can_be_typed_as_it_stands():
    words = ["jobs/train.py", "--output_dir", "/my runs/a", "--query_prefix", "it's: "]
    assert shlex.split(command(*words)) == ["python", *words]


def test_a_table_of_a_notebook_shows_text_as_text_and_few_digits():
    assert html_table(["a<b"], [[0.123456]]) == "<table><tr><th>a&lt;b</th></tr><tr><td>0.123</td></tr></table>"
    assert html_table(["a"], [], "x<y") == "<table><tr><th>a</th></tr></table><p>x&lt;y</p>"


def test_characters_that_command_a_terminal_or_hide_are_shown_as_escapes_and_all_others_stay():
    hostile = "a\x1b[31m\x00\r\n\x9b\u202e\u2066\u200f\u2028\ufeff\udc80\U000e0041b"
    escapes = r"a\x1b[31m\x00\r\n\x9b\u202e\u2066\u200f\u2028\ufeff\udc80\U000e0041b"
    assert printable(hostile) == printable(escapes) == escapes
    assert str(InputError(f"x: {hostile}")) == f"x: {escapes}"
    words = "é 漢字\u3000👩\u200d🔬 می\u200cخواهم\xa0\\ e\u0301"
    assert printable(words) == words
