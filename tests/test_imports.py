"""Imports go down only: between rooms in the order below, and between the files of a room without a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rqa_ray

ROOT = Path(rqa_ray.__file__).parent
# From the ground up. The files at the top level of the package are rooms of one file.
ROOMS = (
    "ray_environment",
    "errors",
    "texts",
    "progress",
    "places",
    "fields",
    "settings",
    "command_line",
    "cluster",
    "retriever",
    "data",
    "corpus",
    "evaluation",
    "reports",
    "training",
    "tuning",
    "benchmarks",
    "interface",
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in ROOT.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES and name.count(".")} - {module_of(path)}


def room_of(module: str) -> str:
    return module.split(".")[1]


ARROWS = {module: imports_of(path) for module, path in MODULES.items() if module != "rqa_ray"}


def test_every_room_has_its_place():
    assert {room_of(module) for module in ARROWS} == set(ROOMS)


@pytest.mark.parametrize("module", sorted(ARROWS))
def test_a_file_imports_from_its_own_room_and_from_rooms_below(module: str):
    above = [other for other in ARROWS[module] if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))]
    assert not above, f"{module} imports {', '.join(sorted(above))}"


def test_no_files_import_each_other_in_a_circle():
    files = {module: {other for other in others if other in ARROWS} for module, others in ARROWS.items()}
    try:
        TopologicalSorter(files).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_init_files_are_empty_but_the_top_one():
    assert [module for module, path in MODULES.items() if path.name == "__init__.py" and path.stat().st_size] == [
        "rqa_ray"
    ]


def test_no_file_is_longer_than_a_reader_holds():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: number for module, number in lines.items() if number > 300} == {}
