"""What Ray Train's controller imports, before which no worker starts. Whole runs test the process group itself."""

import subprocess
import sys

CODE = """
import sys
import ray.train.v2._internal.execution.controller
import rqa_ray.data.windows, rqa_ray.training.loops, rqa_ray.training.process_group, rqa_ray.training.spec
assert not {"torch", "transformers"} & sys.modules.keys()
"""


def test_what_the_controller_is_told_imports_neither_torch_nor_transformers() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
