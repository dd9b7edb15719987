"""The diffs in rqa_ray/README.md, which show how to add to the code, fit the code."""

import re
from pathlib import Path

import pytest

import rqa_ray

ROOT = Path(rqa_ray.__file__).parents[1]
DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "rqa_ray" / "README.md").read_text(), re.DOTALL)
CHANGES = [change for diff in DIFFS for change in re.split(r"(?m)^--- ", diff)[1:]]  # one for each file


def test_a_loss_a_form_of_record_and_a_metric_are_shown():
    assert len(DIFFS) == 3 and len(CHANGES) == 4


@pytest.mark.parametrize("change", CHANGES, ids=[change.split()[0] for change in CHANGES])
def test_what_a_diff_changes_is_in_the_code(change: str):
    path, *hunks = re.split(r"(?m)^(?:\+\+\+.*|@@)\n", change)
    code = (ROOT / path.strip()).read_text()
    for hunk in filter(None, hunks):
        old = [line[1:] for line in hunk.splitlines() if not line.startswith("+")]
        assert "\n".join(old) in code, f"{path}: has no lines\n{hunk}"
