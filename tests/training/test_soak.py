"""Training and searches under faults, for some minutes.

`RQA_RAY_SOAK_MINUTES=60 RQA_RAY_SOAK_SEED=1 pytest -m slow -s tests/training/test_soak.py` takes an hour.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.nodes import ROOT, can_mount
from tests.training.soak import ALONE


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="may not mount: `unshare -m` fails")
def test_faults_one_after_the_other_change_no_result_and_leave_nothing_behind(train_flags, tmp_path) -> None:
    minutes, seed = (os.environ.get(f"RQA_RAY_SOAK_{name}", "3") for name in ("MINUTES", "SEED"))
    command = [*ALONE, sys.executable, "-m", "tests.training.soak", str(tmp_path), minutes, seed, *train_flags]
    subprocess.run(command, cwd=ROOT, check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    print(json.dumps(report, indent=2))
    assert report["struck"]
    assert not report["unexpected"] and not report["unequal"] and not report["leaks"]
