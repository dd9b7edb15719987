"""The built-in set has clean questions, splits without a common file, the same bytes each time, and all files or none.

The rules are checked on the real standard library, which is read once. Single definitions are checked on a small
library made for the test.
"""

import json
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from rqa_ray.data import demo
from rqa_ray.data.demo import first_sentence, write_demo
from rqa_ray.data.splits import folded
from rqa_ray.errors import InputError

SPLITS = ("train", "eval", "test")
SIZES = {"num_train": 3000, "num_eval": 500, "num_test": 500}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, **SIZES)
    return folder


@pytest.fixture(scope="module")
def records(folder) -> dict[str, list[dict]]:
    return {split: read(folder / f"{split}.jsonl") for split in SPLITS}


def all_pairs(records) -> list[tuple[str, dict]]:
    return [(record["questions"][0], record["gold_docs"][0]) for split in SPLITS for record in records[split]]


# On the standard library of this Python


def test_the_files_have_the_sizes_asked_for_and_the_form_of_the_data_contract(folder, records):
    assert [len(records[split]) for split in SPLITS] == [3000, 500, 500]
    for record in (record for split in SPLITS for record in records[split]):
        assert list(record) == ["questions", "gold_docs", "hard_neg_docs", "chat_history"]
        assert len(record["questions"]) == len(record["gold_docs"]) == 1
        assert record["hard_neg_docs"] == record["chat_history"] == []
    for document in read(folder / "documents.jsonl"):
        assert document["fmt_content"] == document["page_content"] != ""
        assert len(document["page_content"]) <= 600
        assert re.fullmatch(r"[\w./-]+\.py#L\d+", document["metadata"]["source"])
        assert document["metadata"]["title"]


def test_no_two_splits_share_a_file(records):
    files = [
        {record["gold_docs"][0]["metadata"]["source"].rsplit("#L", 1)[0] for record in records[split]}
        for split in SPLITS
    ]
    assert min(map(len, files)) > 5
    assert sum(map(len, files)) == len(set().union(*files))


def test_no_file_makes_up_much_of_eval_or_test(records):
    for split in ("eval", "test"):
        files = Counter(r["gold_docs"][0]["metadata"]["source"].rsplit("#L", 1)[0] for r in records[split])
        assert max(files.values()) <= 125


def test_no_question_and_no_passage_is_there_twice(records):
    questions = Counter(folded(question) for question, _ in all_pairs(records))
    passages = Counter(folded(document["page_content"]) for _, document in all_pairs(records))
    assert max(questions.values()) == max(passages.values()) == 1


def test_no_passage_contains_its_question(records):
    assert not [q for q, document in all_pairs(records) if folded(q) in folded(document["page_content"])]


def test_a_class_passage_rarely_contains_the_question_of_another_pair(records):
    # Docstrings of methods are taken out too; comments and other strings may still say the same by chance.
    passages = [document["page_content"] for _, document in all_pairs(records)]
    text = "\n".join(folded(passage) for passage in passages if passage.startswith("class "))
    assert len(text) > 100_000
    assert sum(folded(question) in text for question, _ in all_pairs(records)) <= 3


def test_the_gold_passage_of_every_question_is_in_the_corpus_once(folder, records):
    corpus = Counter(json.dumps(document, sort_keys=True) for document in read(folder / "documents.jsonl"))
    assert max(corpus.values()) == 1
    assert set(corpus) == {json.dumps(document, sort_keys=True) for _, document in all_pairs(records)}


def test_passages_are_lines_of_the_file_that_they_name(records):
    for _, document in all_pairs(records)[::50]:
        file, line = document["metadata"]["source"].rsplit("#L", 1)
        source = Path(sysconfig.get_paths()["stdlib"], file).read_text(encoding="utf-8").splitlines()
        passage = document["page_content"].splitlines()
        assert source[int(line) - 1].strip() == passage[0].strip()
        assert {line.strip() for line in passage[:-1]} <= {line.strip() for line in source}  # the last may be cut


def test_another_process_writes_the_same_bytes(folder, tmp_path):
    code = f"from pathlib import Path; from rqa_ray.data.demo import write_demo; write_demo(Path('again'), **{SIZES})"
    root = str(Path(demo.__file__).parents[2])
    env = {"PYTHONPATH": root, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_smaller_set_is_the_beginning_of_a_larger_one(folder, tmp_path):
    write_demo(tmp_path, 100, 10, 10)
    for split in SPLITS:
        small = (tmp_path / f"{split}.jsonl").read_bytes()
        assert small and (folder / f"{split}.jsonl").read_bytes().startswith(small)


def test_another_seed_gives_other_splits(folder, tmp_path):
    write_demo(tmp_path, **SIZES, seed=1)
    assert (tmp_path / "test.jsonl").read_bytes() != (folder / "test.jsonl").read_bytes()


def test_gold_passages_do_not_stand_first_in_the_corpus(tmp_path):
    write_demo(tmp_path, 100, 10, 10)
    eval_golds = [record["gold_docs"][0] for record in read(tmp_path / "eval.jsonl")]
    places = [place for place, doc in enumerate(read(tmp_path / "documents.jsonl")) if doc in eval_golds]
    assert len(places) == 10 and max(places) > 60


@pytest.mark.parametrize("wrong", ["num_train", "num_eval", "num_test"])
@pytest.mark.parametrize("size", [-1, 0, 1_000_000])
def test_a_size_that_cannot_be_had_is_refused_with_the_number_there_is_and_nothing_written(tmp_path, wrong, size):
    sizes = {"num_train": 100, "num_eval": 10, "num_test": 10, wrong: size}
    name = "--demo_size" if wrong == "num_train" else wrong
    with pytest.raises(InputError, match=rf"^{name} {size}: .* \d+ .*to \d{{3,4}}[^\n]*$"):
        write_demo(tmp_path / "new", **sizes)
    assert not (tmp_path / "new").exists()


def test_the_number_named_in_the_error_can_be_had(tmp_path):
    with pytest.raises(InputError) as error:
        write_demo(tmp_path, 100, 10, 1_000_000)
    available = int(str(error.value).split()[-1])
    assert available >= 500
    write_demo(tmp_path, 100, 10, available)
    assert len(read(tmp_path / "test.jsonl")) == available


def test_a_failure_while_writing_leaves_the_earlier_files_whole_and_nothing_beside_them(tmp_path, monkeypatch):
    write_demo(tmp_path, 10, 10, 10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text, written = Path.write_text, []

    def disk_full_at_the_third_file(self, *args, **kwargs):
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", disk_full_at_the_third_file)
    with pytest.raises(InputError, match="cannot be written to: No space left on device"):
        write_demo(tmp_path, 100, 10, 10)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written to"):
        write_demo(tmp_path / "file", 10, 10, 10)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_passage_of_no_characters_is_refused(tmp_path):
    with pytest.raises(InputError, match="max_chars=0"):
        write_demo(tmp_path, 10, 10, 10, max_chars=0)


# On a small made-up library


def pairs_of(folder: Path, source: str | bytes, name: str = "module.py", max_chars: int = 600) -> dict[str, str]:
    path = folder / "lib" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    demo.read_pairs.cache_clear()
    return {pair.question: pair.passage for pair in demo.read_pairs(folder / "lib", max_chars)}


def test_the_docstrings_of_a_class_and_of_its_methods_are_taken_out_and_all_else_is_kept(tmp_path):
    source = '''
if True:
    @decorated
    class Tree:
        """Keeps things in a tree.

        Long story.
        """  # noqa

        label = """not
a docstring"""

        def grow(self):  # é before
            "Makes the tree é larger."; self.size += 1

        def empty(self):
            """Only a docstring and nothing else."""
'''
    pairs = pairs_of(tmp_path, source)
    assert pairs["Keeps things in a tree."] == (
        '@decorated\nclass Tree:\n    # noqa\n\n    label = """not\na docstring"""\n\n'
        "    def grow(self):  # é before\n        self.size += 1\n\n    def empty(self):"
    )
    assert pairs["Makes the tree é larger."] == "def grow(self):  # é before\n    self.size += 1"
    assert len(pairs) == 2


def test_definitions_without_a_body_make_no_pair(tmp_path):
    for body in ("", "    pass\n", "    ...\n"):
        assert not pairs_of(tmp_path, f'def stub():\n    """Does nothing that can be found."""\n{body}')
    assert pairs_of(tmp_path, 'def real():\n    """Does nothing that can be found."""\n    return 1\n')


def test_a_question_that_two_passages_share_is_left_out_whatever_its_case_white_space_and_full_stop(tmp_path):
    first = 'def one():\n    """Return the wanted  thing now."""\n    return 1\n'
    second = 'def two():\n    """return the wanted\n    thing now"""\n    return 2\n'
    assert len(pairs_of(tmp_path, first)) == 1
    assert not pairs_of(tmp_path, second, "other.py")


def test_a_passage_that_is_there_twice_is_left_out(tmp_path):
    assert len(pairs_of(tmp_path, 'def one():\n    """First wording of the question."""\n    return 1\n')) == 1
    assert not pairs_of(tmp_path, 'def one():\n    """Second wording of the question."""\n    return 1\n', "b.py")


def test_a_passage_that_repeats_its_question_is_left_out(tmp_path):
    assert not pairs_of(tmp_path, 'def say():\n    """Say the same again."""\n    print("say the same again")\n')


def test_passages_are_cut_to_the_length_asked_for(tmp_path):
    source = 'def long():\n    """Says the same very often."""\n    return "%s"\n' % ("ab" * 500)
    assert (
        pairs_of(tmp_path, source, max_chars=40)["Says the same very often."]
        == source.replace('    """Says the same very often."""\n', "")[:40]
    )


def test_tests_and_packages_that_are_not_of_the_library_are_not_read(tmp_path):
    source = 'def one():\n    """Return the wanted thing now."""\n    return 1\n'
    for folder in ("test", "json/tests", "site-packages/pip", "config-3.11-x86_64"):
        assert not pairs_of(tmp_path, source, f"{folder}/module.py")
    assert pairs_of(tmp_path, source, "json/module.py")


def test_broken_files_are_passed_over_and_declared_encodings_honoured(tmp_path):
    assert not pairs_of(tmp_path, "def broken(:\n", "broken.py")
    assert not pairs_of(tmp_path, b"x = '\xff'\n", "not_utf8.py")
    assert not pairs_of(tmp_path, b"x = '\0'\n", "null.py")
    latin = '# coding: latin-1\ndef one():\n    """Return the café of now."""\n    return 1\n'.encode("latin-1")
    assert list(pairs_of(tmp_path, latin, "latin.py")) == ["Return the café of now."]


def test_an_interpreter_without_sources_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "none")})
    with pytest.raises(InputError, match=r"none: found no Python sources for the demo set.*$"):
        write_demo(tmp_path / "new", 10, 10, 10)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Parse a given date. Then more.", "Parse a given date."),
        ("Parse a date\n  in  any form\n\nMore.", "Parse a date in any form"),
        ("Parse a name, e.g. Smith, or J. Doe. More.", "Parse a name, e.g. Smith, or J. Doe."),
        ("Parse version 3.11 of it!  Now.", "Parse version 3.11 of it!"),
        ("Parse one of these:\n  - dates\n  - names", "Parse one of these:"),
        ("Parse what is given\n:param date: it", "Parse what is given"),
        ("Parse it.", ""),
        ("get(key) -> the value that is kept", ""),
        (">>> parse(1) and so on", ""),
        ("local-part = dot-atom / quoted-string", ""),
        ("word " * 100, ""),
        ("", ""),
    ],
)
def test_the_question_is_the_first_sentence_or_nothing(docstring, sentence):
    assert first_sentence(docstring) == sentence
