"""Makes the built-in set of questions and passages from the Python standard library of the running interpreter.

1. Read: find every function, method and class with a docstring, with `ast`, in the installed sources without tests.
   The question is the first sentence of the docstring. The passage is the source code without any docstrings.
2. Clean: leave out questions and passages that are not unique, and passages that contain their own question.
3. Split by source file, so that train, eval and test share no file.
4. Write the first pairs of each split, in a seeded order, and the corpus: all four files or none.

The repository contains none of these texts. Every order comes from hashes of relative paths, never from the file
system.
"""

import ast
import functools
import os
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rqa_ray.data.splits import folded, seeded_hash, split_groups, write_together
from rqa_ray.errors import InputError

MIN_WORDS, MAX_QUESTION_CHARS = 4, 300
# Tests, programs, bundled wheels, and folders that differ from machine to machine.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}

# A sentence ends before white space and a character that can begin the next one; not after "e.g." or an initial.
SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\b[A-Z])[.!?]['\")]*(?=\s+[^\sa-z]|$)")
# The prose of a docstring stops at a blank line, a list, an example, a field list or an underline.
PROSE_END = re.compile(r"\n\s*(?=\n|[-*+o]\s|\(?\d+[.)]\s|>>>|[:@]\w+|\.\.\s|[-=~]{3})")
# Signatures ("get(key) -> value"), grammar rules ("local-part = word") and doctests are no questions.
NOT_PROSE = re.compile(r"[\w.]+\([^)]*\)\s*(->|:|--|=|$)|.*\s->\s|[\w, -]+ = |[^A-Za-z`'\"*_]")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Pair:
    question: str
    passage: str
    file: str  # relative to the standard library, with forward slashes
    line: int
    name: str  # qualified inside the file

    @property
    def document(self) -> dict:
        """The passage as a document of the data contract.

        The name is not embedded, because it would give the answer away.
        """
        metadata = {"source": f"{self.file}#L{self.line}", "title": self.name}
        return {"page_content": self.passage, "fmt_content": self.passage, "metadata": metadata}


def write_demo(
    folder: Path, num_train: int, num_eval: int, num_test: int, max_chars: int = 600, seed: int = 0
) -> dict[str, Path]:
    """Writes train, eval, test and documents.jsonl; returns their paths by the names of the train job's flags.

    Passages are cut to `max_chars` characters (about three for each token). The corpus contains the passages of all
    questions. A smaller split is the beginning of a larger split with the same seed.

    Raises:
        InputError: there are too few pairs.
    """
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    pairs = read_pairs(stdlib, max_chars)
    if not pairs:
        raise InputError(f"{stdlib}: found no Python sources for the demo set; use a full Python installation")
    splits = split_by_file(pairs, seed)
    sizes = {"eval": num_eval, "test": num_test, "train": num_train}
    for split, size in sizes.items():
        if not 1 <= size <= len(splits[split]):
            name = "--demo_size" if split == "train" else f"num_{split}"
            raise InputError(f"{name} {size}: this Python's standard library has 1 to {len(splits[split])}")
    chosen = {split: splits[split][:size] for split, size in sizes.items()}

    # In another order than the splits: search breaks ties by document order, and the splits begin with the evaluated
    # pairs.
    corpus = in_seeded_order([pair for split in sizes for pair in chosen[split]], f"corpus {seed}")

    files: dict[str, list[dict]] = {"documents.jsonl": [pair.document for pair in corpus]}
    for split in sizes:
        files[f"{split}.jsonl"] = [
            {"questions": [pair.question], "gold_docs": [pair.document], "hard_neg_docs": [], "chat_history": []}
            for pair in chosen[split]
        ]
    write_together(folder, files)
    paths = {f"{split}_file": folder / f"{split}.jsonl" for split in ("train", "eval", "test")}
    return paths | {"full_dataset_file_path": folder / "documents.jsonl"}


@functools.lru_cache(maxsize=2)
def read_pairs(stdlib: Path, max_chars: int) -> tuple[Pair, ...]:
    """Returns all clean pairs below `stdlib`, unordered: no text twice, and no passage that contains its question."""
    if max_chars < 1:
        raise InputError(f"max_chars={max_chars}: passages need at least 1 character")
    found: list[Pair] = []
    for folder, subfolders, names in os.walk(stdlib):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS and not name.startswith("config-")]
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            found += read_file(path, path.relative_to(stdlib).as_posix(), max_chars)
    questions = Counter(folded(pair.question) for pair in found)
    passages = Counter(folded(pair.passage) for pair in found)
    return tuple(
        pair
        for pair in found
        if questions[folded(pair.question)] == passages[folded(pair.passage)] == 1
        and folded(pair.question) not in folded(pair.passage)
    )


def read_file(path: Path, file: str, max_chars: int) -> Iterator[Pair]:
    try:
        with tokenize.open(path) as stream:  # in the encoding that the file declares
            text = stream.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            found = list(definitions(ast.parse(text)))
    except (OSError, SyntaxError, ValueError):
        return  # a file that is broken, or for another Python, has no pairs
    lines = without_docstrings(text, [node for _, node in found])
    for name, node in found:
        question = first_sentence(ast.get_docstring(node) or "")
        if question and has_body(node):
            start = min(part.lineno for part in [node, *node.decorator_list])
            code = b"".join(line.removeprefix(b" " * node.col_offset) for line in lines[start - 1 : node.end_lineno])
            yield Pair(question, code.decode().rstrip()[:max_chars].rstrip(), file, start, name)


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Yields all definitions below `node` with qualified names.

    Definitions are statements, so expressions are skipped.
    """
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, block, ()):
            named = isinstance(child, Definition)
            if named:
                yield prefix + child.name, child
            yield from definitions(child, f"{prefix}{child.name}." if named else prefix)


def has_body(node: Definition) -> bool:
    """Returns whether anything is left besides docstring, `...` and `pass`."""
    return any(
        not isinstance(item, ast.Pass) and not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
        for item in node.body
    )


def without_docstrings(text: str, nodes: Iterable[Definition]) -> list[bytes]:
    """Returns the lines of `text` without the docstrings of `nodes`; lines that become blank stay as b""."""
    lines = text.encode().splitlines(keepends=True)  # as bytes, because ast counts columns in bytes
    for node in nodes:
        if ast.get_docstring(node, clean=False) is not None:
            doc = node.body[0]
            first, last = doc.lineno - 1, (doc.end_lineno or doc.lineno) - 1
            rest = lines[first][: doc.col_offset] + lines[last][doc.end_col_offset :].lstrip(b"; ")
            lines[first : last + 1] = [rest if rest.strip() else b""] + [b""] * (last - first)
    return lines


def first_sentence(docstring: str) -> str:
    """Returns the first sentence on one line, or "" if it makes no question."""
    prose = " ".join(PROSE_END.split(docstring.strip(), maxsplit=1)[0].split())
    end = SENTENCE_END.search(prose)
    sentence = prose[: end.end()] if end else prose
    usable = len(sentence.split()) >= MIN_WORDS and len(sentence) <= MAX_QUESTION_CHARS
    return sentence if usable and not NOT_PROSE.match(sentence) else ""


def split_by_file(pairs: Iterable[Pair], seed: int) -> dict[str, list[Pair]]:
    """Splits pairs into train, eval and test, which have no source file in common."""
    by_file: dict[str, list[Pair]] = {}
    for pair in in_seeded_order(pairs, seed):
        by_file.setdefault(pair.file, []).append(pair)
    return {split: in_seeded_order(chosen, seed) for split, chosen in split_groups(by_file, seed).items()}


def in_seeded_order(pairs: Iterable[Pair], seed: int | str) -> list[Pair]:
    return sorted(pairs, key=lambda pair: seeded_hash(f"{pair.file}:{pair.line}", seed))
