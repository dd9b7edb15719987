"""Only the modules marked (Ray) in rqa_ray/README.md need Ray; the others run where Ray is not installed."""

import subprocess
import sys

from tests.test_imports import MAP

IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["ray"] = None  # importing it raises ImportError
import rqa_ray
failed = []
for module in pkgutil.walk_packages(rqa_ray.__path__, "rqa_ray."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        if not error.name or not error.name.startswith("ray"):
            raise
        failed.append(module.name)
print(*failed)
"""


def output_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_those_modules_and_no_other_need_ray_to_be_imported():
    assert set(output_of(IMPORT_ALL).split()) == {module for module, needs_ray in MAP.items() if needs_ray}


def test_importing_the_package_imports_neither_torch_nor_ray():
    assert output_of("import sys, rqa_ray; print(sorted({'torch', 'ray'} & sys.modules.keys()))") == "[]"
