"""Python code in a model's folder runs only with --trust_remote_code, whatever in the folder asks for the code."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rqa_ray.corpus.model import find_model
from rqa_ray.corpus.teacher import CrossEncoderFolder, _Scorer, find_teacher
from rqa_ray.corpus_settings import ExportSettings, SearchSettings
from rqa_ray.errors import InputError
from rqa_ray.retriever.adapters import check_lora
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.weights import check_weights
from rqa_ray.settings import TrainSettings

SOURCES = (Path(__file__).parents[1] / "rqa_ray").rglob("*.py")
CODE = """
from pathlib import Path
Path({canary!r}).touch()
import transformers
# Classes of this file: transformers marks the classes that it loads from a folder, for the whole process.
class Config(transformers.BertConfig): pass
class Model(transformers.BertModel): pass
class Scorer(transformers.BertForSequenceClassification): pass
class Tokenizer(transformers.BertTokenizerFast): pass
from torch.nn import Identity as Transformer, Identity as Head
"""
AUTO_MAP = {
    "AutoConfig": "modeling_canary.Config",
    "AutoModel": "modeling_canary.Model",
    "AutoModelForSequenceClassification": "modeling_canary.Scorer",
}


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def of_another_type(folder: Path) -> None:
    change(folder / "config.json", auto_map=AUTO_MAP, model_type="of_this_test_alone")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "modeling_canary.Tokenizer"]})


def of_a_known_type(folder: Path) -> None:
    change(folder / "config.json", auto_map=AUTO_MAP)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "modeling_canary.Tokenizer"]})


def with_modules(folder: Path, *kinds: str) -> None:
    modules = [{"idx": place, "name": str(place), "path": "", "type": kind} for place, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))


def with_its_own_first_module(folder: Path) -> None:
    with_modules(folder, "modeling_canary.Transformer")


def with_its_own_head(folder: Path) -> None:
    with_modules(folder, "sentence_transformers.base.modules.Transformer", "modeling_canary.Head")


def with_a_pickle_as_weights(folder: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(folder.parent / "canary"),)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Payload()}))


WAYS = [of_another_type, of_a_known_type, with_its_own_first_module, with_its_own_head, with_a_pickle_as_weights]


@pytest.fixture
def hostile(tiny_model, tmp_path, monkeypatch) -> Callable[[Callable[[Path], None]], tuple[str, Path]]:
    """Makes a copy of the tiny model with code that touches a canary; returns the folder and the canary."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a person who lets everything run if asked

    def make(way: Callable[[Path], None]) -> tuple[str, Path]:
        folder, canary = tmp_path / f"hostile-{way.__name__}", tmp_path / "canary"
        shutil.copytree(tiny_model, folder)
        (folder / "modeling_canary.py").write_text(CODE.format(canary=str(canary)))
        way(folder)
        return str(folder), canary

    return make


def opened(name: str, files: dict[str, str], output: Path, **more: bool) -> list[Callable[[], object]]:
    """What jobs do with a model of this name: all but Ray's part, which loads models by the same functions."""
    spec = ModelSpec(name, EncoderSettings(), **more)
    documents = [files["full_dataset_file_path"]]
    search = SearchSettings(embedding_model_name_or_path=name, document_path=documents, question="alpha", **more)
    export = ExportSettings(
        embedding_model_name_or_path=name,
        document_path=documents,
        eval_data_path=[files["test_file"]],
        output_dir=str(output),
        runtimes=[],
        **more,
    )
    from rqa_ray.corpus.search import search as job_of_search
    from rqa_ray.export.export import export as job_of_export

    lora = TrainSettings(lora_r=2)
    scorer = CrossEncoderFolder(name, name), SimpleNamespace(cpus=1, use_gpu=False)
    return [
        lambda: find_model(search),
        lambda: check_weights(spec),
        lambda: check_lora(lora, spec),
        lambda: load_encoder(spec.folder, spec.settings, trust_remote_code=spec.trust_remote_code),
        lambda: job_of_search(search),
        lambda: job_of_export(export),
        lambda: Embedder.load(find_teacher(name).spec),
        lambda: _Scorer(scorer[0].folder, None, None, scorer[1]),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_code_in_the_folder_of_a_model_or_teacher_does_not_run_without_the_flag(hostile, files, tmp_path, way):
    name, canary = hostile(way)
    for place, call in enumerate(opened(name, files, tmp_path / "out")):
        try:
            call()
        except InputError as error:
            assert "\n" not in str(error)
        except (ValueError, OSError):  # transformers refuses; the jobs check the folder before these calls
            assert place == 2
        assert not canary.exists(), place


def test_the_code_of_these_folders_would_run_with_the_flag(hostile, files, tmp_path):
    name, canary = hostile(of_another_type)
    opened(name, files, tmp_path / "out", trust_remote_code=True)[0]()
    assert canary.exists()


def test_every_call_that_may_run_code_of_a_folder_says_whether_it_may():
    silent = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            names = {keyword.arg for keyword in node.keywords}  # None for `**options`
            if called == "CrossEncoder" or (
                called.startswith("Auto") and called.endswith(("from_pretrained", "from_config"))
            ):
                silent += [f"{path.name}:{node.lineno}"] * (not names & {"trust_remote_code", None})
    assert silent == []
