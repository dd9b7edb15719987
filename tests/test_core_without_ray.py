"""Only the modules marked (Ray) in the README need Ray; the rest runs where it is not installed."""

import subprocess
import sys

NEED_RAY = {
    "rqa_ray.benchmarks.through_ray",
    "rqa_ray.autoscaler",
    "rqa_ray.cluster",
    "rqa_ray.data.prepare",
    "rqa_ray.data.readers",
    "rqa_ray.data.streaming",
    "rqa_ray.evaluation.corpus_job",
    "rqa_ray.evaluation.embed",
    "rqa_ray.evaluation.score",
    "rqa_ray.training.checkpoints",
    "rqa_ray.training.fit",
    "rqa_ray.model_copies",
    "rqa_ray.preflight",
    "rqa_ray.training.mailbox",
    "rqa_ray.training.reporting",
    "rqa_ray.training.resume",
    "rqa_ray.training.run",
    "rqa_ray.training.setup",
    "rqa_ray.training.uploads",
    "rqa_ray.training.validate",
    "rqa_ray.training.worker",
    "rqa_ray.tuning.models",
    "rqa_ray.tuning.search",
    "rqa_ray.tuning.trial",
    "rqa_ray.tuning.watch",
}

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
    assert set(output_of(IMPORT_ALL).split()) == NEED_RAY


def test_importing_the_package_imports_neither_torch_nor_ray():
    assert output_of("import sys, rqa_ray; print(sorted({'torch', 'ray'} & sys.modules.keys()))") == "[]"
