"""How `-h` looks: settings below headings, each once with its default, wrapped to the terminal."""

import dataclasses
import io
from contextlib import redirect_stdout
from typing import Literal

import pytest

from rqa_ray.command_line import parse
from rqa_ray.errors import InputError
from rqa_ray.fields import DATA, LOGGING, OUTPUT, REQUIRED, at_least


@dataclasses.dataclass(kw_only=True)
class Example:
    """Settings of each kind."""

    report: Literal["all", "none"] = LOGGING.setting("all", "What is said.")
    sizes: list[int] | None = DATA.setting(None, "Sizes (MB).", at_least(1), unset="all sizes")
    share: float = DATA.setting(0.00001, "A share.")
    pieces: int = DATA.setting(0, "Pieces.")
    quick: bool = DATA.setting(False, "In a hurry.")
    writes: bool = OUTPUT.setting(True, "Write files.")
    folder: str = OUTPUT.path(REQUIRED, "Where results go.", more_names=("folder", "output_folder"))
    kind: Literal["a_very_long_choice", "another_long_choice"] = DATA.setting("a_very_long_choice", "Kinds.")


HELP = """\
Does something.
usage: it FLAGS
[...] is the default. Names in CONFIG.json are those of the flags.

data:
  --sizes N ...                   Sizes (MB). [all sizes]
  --share X                       A share. [1e-05]
  --pieces N                      Pieces. [0]
  --quick                         In a hurry.
  --kind NAME                     Kinds: a_very_long_choice, another_long_choice.
                                  [a_very_long_choice]

output:
  --folder PATH                   Where results go. Also --output_folder. [required]
  --writes true|false             Write files. [true]

logging:
  --report all|none               What is said. [all]
"""


def help_of(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as screen, pytest.raises(SystemExit) as stop:
        parse(Example, words, "Does something.\nusage: it FLAGS\n")
    assert stop.value.code == 0
    return screen.getvalue()


@pytest.mark.parametrize("columns", ["", "100", "1000"])
def test_settings_stand_below_their_headings_with_their_defaults(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert help_of("-h") == help_of("--help") == help_of("-h", "all") == help_of("--quick", "-h") == HELP


def test_a_narrow_terminal_wraps_more(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = help_of("-h").splitlines()[3:]
    assert max(map(len, lines)) <= 40
    assert "  --folder PATH     Where results go." in lines


def test_help_is_asked_for_alone_or_with_all():
    with pytest.raises(InputError, match="^-h train: choose one of all$"):
        parse(Example, ["-h", "train"])
