"""Only the modules marked (Ray) in the README need Ray; the rest runs where it is not installed."""

import subprocess
import sys

NEED_RAY = {
    "rqa_ray.benchmarks.through_ray",
    "rqa_ray.cluster.connection",
    "rqa_ray.cluster.nodes",
    "rqa_ray.cluster.workers",
    "rqa_ray.data.prepare",
    "rqa_ray.data.readers",
    "rqa_ray.data.streaming",
    "rqa_ray.corpus.encode",
    "rqa_ray.corpus.embed",
    "rqa_ray.evaluation.evaluate",
    "rqa_ray.training.checkpoints",
    "rqa_ray.training.driver",
    "rqa_ray.cluster.model_copies",
    "rqa_ray.cluster.probe",
    "rqa_ray.training.mailbox",
    "rqa_ray.training.preflight",
    "rqa_ray.training.report_callback",
    "rqa_ray.training.run_record",
    "rqa_ray.training.train",
    "rqa_ray.training.setup",
    "rqa_ray.training.uploads",
    "rqa_ray.training.evaluation_worker",
    "rqa_ray.training.worker",
    "rqa_ray.tuning.models",
    "rqa_ray.tuning.tune",
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
