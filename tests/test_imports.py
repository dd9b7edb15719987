"""A file imports only from files above it in the map (rqa_ray/README.md), so no two files need each other."""

import ast
from pathlib import Path

import pytest

import rqa_ray

ROOT = Path(rqa_ray.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def read_map() -> dict[str, bool]:
    """Returns the modules in the order of the map in rqa_ray/README.md, and whether they are marked (Ray)."""
    found, room = {}, ""
    text = (ROOT / "README.md").read_text()
    for line in text.split("```\nrqa_ray/\n")[1].split("\njobs/")[0].splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            room = name.replace("/", ".")
        else:
            within = room if line.startswith("    ") else ""
            found[f"rqa_ray.{within}{name.removesuffix('.py')}"] = line.endswith("(Ray)")
    return found


MAP = read_map()


def imports_of(path: Path) -> set[str]:
    """Returns the modules of this package that a file imports, anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & MODULES.keys()


def test_the_map_has_every_file_and_no_other():
    assert set(MAP) == {module for module, path in MODULES.items() if path.name != "__init__.py"}


@pytest.mark.parametrize("module", MAP)
def test_a_file_imports_from_above_it_in_the_map(module: str):
    order = list(MAP)
    others = [other for other in imports_of(MODULES[module]) if other in MAP and other != module]
    below = [other for other in others if order.index(other) > order.index(module)]
    assert not below, f"{module} imports {', '.join(sorted(below))}"


def test_init_files_are_empty_but_the_top_one():
    filled = [module for module, path in MODULES.items() if path.name == "__init__.py" and path.stat().st_size]
    assert filled == ["rqa_ray"]


def test_no_file_is_longer_than_a_reader_holds():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: number for module, number in lines.items() if number > 300} == {}
