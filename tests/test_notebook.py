"""The notebook in jobs/ runs as it stands, and its stored outputs are those of a whole run."""

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rqa_ray.data import demo

PATH = Path(__file__).parents[1] / "jobs" / "notebook.ipynb"
CELLS = [cell for cell in json.loads(PATH.read_text())["cells"] if cell["cell_type"] == "code"]


def run(cell: dict, names: dict[str, Any]) -> str:
    """Runs a cell; returns how a notebook shows the value of its last line."""
    code = ast.parse("".join(cell["source"]))
    last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
    exec(compile(code, PATH.name, "exec"), names)
    value = eval(ast.unparse(last.value), names) if isinstance(last, ast.Expr) else None
    return value._repr_html_() if hasattr(value, "_repr_html_") else ""


def test_the_cells_run_with_a_tiny_model(ray_cluster, tiny_model, tmp_path, monkeypatch, capsys):
    read_pairs = demo.read_pairs

    def read_fewer_pairs(stdlib: Path, max_chars: int) -> list[demo.Pair]:
        folders = ("asyncio", "email", "importlib", "multiprocessing", "unittest")
        return [pair for folder in folders for pair in read_pairs(stdlib / folder, max_chars)]

    monkeypatch.setattr(demo, "read_pairs", read_fewer_pairs)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(IFrame=lambda path, **size: Path(path)))
    first, *cells = CELLS
    assert first["metadata"]["tags"] == ["parameters"]  # by which papermill finds the cell that it replaces
    names: dict[str, Any] = {}
    run(first, names)
    sizes = {"num_train": 24, "num_eval": 6, "num_test": 6}
    small = {"model": tiny_model, "folder": str(tmp_path), "sizes": sizes, "steps": 1}
    assert small.keys() == names.keys() - {"__builtins__"}
    names |= small
    shown = [run(cell, names) for cell in cells]
    assert "<td>test nDCG@10</td>" in shown[1] and f"<th>{names['question']}</th>" in shown[3]
    assert "<td>dimensions</td><td>32</td>" in shown[5]
    assert "best step" in capsys.readouterr().out and (tmp_path / "run" / "report.html").is_file()


def test_the_stored_outputs_are_whole_small_and_of_no_machine():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "<td>test nDCG@10</td>" in json.dumps(outputs)
    text = PATH.read_text()
    assert len(text) < 100_000 and "site-packages" not in text and "/home/" not in text and "/work" not in text
