"""jobs/mine.py: what it leaves equals brute force, for any cut of the work, and trains."""

import gzip
import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rqa_ray.corpus.bm25 import Bm25, Hybrid
from rqa_ray.corpus.hybrid_pairs import WordScores
from rqa_ray.corpus.mining import MiningRules
from rqa_ray.corpus.shards import EmbeddingFolder
from rqa_ray.data.formats import parse_document
from rqa_ray.data.records import good_records
from rqa_ray.data.schema import Document, question_key
from rqa_ray.evaluation.hybrid_weight import choose_weight
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from tests.conftest import WORDS, write_lines
from tests.corpus.mining_oracle import Verdicts, exact_scores, verdicts
from tests.jobs import kill_half_way, logged_shards, refused, run
from tests.models import save_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
DROPPED = ("gold", "same_text", "near_duplicate")
FILES = ("train.jsonl", "negatives.parquet", "suspects.jsonl", "mining.json")

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """A corpus with equal and nearly equal texts; questions in several wordings, some with golds beyond the corpus."""
    folder, generator = tmp_path_factory.mktemp("mining-data"), random.Random(1)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(5, 14))) for _ in range(60)]
    texts += [texts[3], texts[4].upper() + "!", f"{texts[5]} and more of that"]
    documents = [{"page_content": text, "metadata": {"_id": number}} for number, text in enumerate(texts)]
    beyond = [{"page_content": f"{text} elsewhere", "metadata": {"_id": f"x{text}"}} for text in WORDS[:3]]
    lines = []
    for number in range(30):
        golds = [documents[number], *generator.sample(beyond, number % 7 == 0)]
        asked = [" ".join(generator.sample(texts[number].split(), 3)), f"question {number // 2}"]
        asked += [f"QUESTION  {number // 3}"] * (number % 3 == 0) + [" "] * (number == 4)
        lines.append({"questions": asked, "gold_docs": golds, "hard_neg_docs": [documents[50]], "chat_history": []})
    lines.append({"questions": ["only beyond"], "gold_docs": [beyond[0]], "hard_neg_docs": []})
    other = {"gold_docs": [documents[55]], "hard_neg_docs": []}  # two questions of a wording that has other golds
    lines += [{**other, "questions": ["question 3"], "instruction": text} for text in ("abc: ", "xyz: ")]
    held_out = [{"question": "held out", "gold_docs": [documents[number]]} for number in range(30, 60)]
    return {
        "train_file": write_lines(folder / "train.jsonl", lines),
        "full_dataset_file_path": write_lines(folder / "documents.jsonl", documents),
        "test_file": write_lines(folder / "test.jsonl", held_out),
    }


@pytest.fixture(scope="module")
def flags(data, tiny_model) -> list[str]:
    named = {**data, "model_name_or_path": tiny_model, "max_seq_length": "40", "num_negatives": "3"}
    named |= {"mine_depth": "20", "mine_margin": "1.01", "cpus_per_worker": "1"}
    return [word for name, value in named.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> str:
    """An embedding model with other weights than the tiny one."""
    from tests.models import small_model

    return small_model(tmp_path_factory.mktemp("other"), "bert", hidden_size=16, initializer_range=0.4)


def cross_encoder(folder: Path, labels: int) -> str:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=150, num_labels=labels, initializer_range=0.5, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mined(ray_cluster, flags, tmp_path_factory) -> Path:
    """The output folder of a run."""
    return mine_again(flags, tmp_path_factory.mktemp("mine") / "out")


def mine_again(flags: list[str], output: Path, *more: object) -> Path:
    run("mine", *flags, "--output_dir", output, *more)
    return output


class Oracle:
    """Brute force over the embeddings that a run has saved; `teacher` gives (Q, P) scores that decide."""

    def __init__(
        self, data: dict[str, str], folder: Path, model: str, embeddings: Path | None = None, max_seq_length: int = 40
    ) -> None:
        documents = good_records([data["full_dataset_file_path"]], "documents")
        self.documents: dict[int, Document] = {}
        for document in documents:
            self.documents.setdefault(document.passage_id, document)
        self.num_passages = len(self.documents)
        self.questions: dict[int, str] = {}
        self.instructions: dict[int, str | None] = {}
        self.golds: dict[int, list[int]] = {}
        for record in good_records([data["train_file"]], "questions"):
            for question in record.questions:
                key = question_key(question, record.instruction)
                self.questions.setdefault(key, question)
                self.instructions.setdefault(key, record.instruction)
                self.golds.setdefault(key, []).extend(gold.passage_id for gold in record.gold_docs)
                for gold in record.gold_docs:
                    self.documents.setdefault(gold.passage_id, gold)
        self.places = {number: place for place, number in enumerate(self.documents)}
        self.texts = [document.fmt_content for document in self.documents.values()]
        embeddings = embeddings or folder / "embeddings"
        self.dense = self.dot_products(model, embeddings, folder / "questions", max_seq_length)
        self.lexical = Bm25(self.texts[: self.num_passages]).scores([*self.questions.values()]).numpy()

    def dot_products(self, model: str, embeddings: Path, others: Path, max_seq_length: int | None) -> np.ndarray:
        """(Q, P and golds beyond) of saved embeddings."""
        from rqa_ray.corpus.encode import text_shards
        from rqa_ray.corpus.shards import EmbeddingFolder, fingerprint
        from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
        from rqa_ray.retriever.tokenizer import TextTokenizer

        folder, other = EmbeddingFolder(str(embeddings)), EmbeddingFolder(str(others))
        spec = ModelSpec(model, read_settings(model, max_seq_length=max_seq_length))
        tokenizer, encoder = TextTokenizer.load(spec), f"{fingerprint(model, spec.settings)} False"
        parts = {"passages": [shard.name for shard in folder.shards]}
        asked = tokenizer.questions([*self.questions.values()], [*self.instructions.values()])
        tokens = asked, tokenizer.passages(self.texts[self.num_passages :])
        for name, rows in zip(("questions", "golds"), tokens, strict=True):
            parts[name] = [table["name"][0].as_py() for table in text_shards(rows, other, encoder)]
        found = {
            name: np.concatenate(
                [block.embeddings.numpy() for block in (folder if name == "passages" else other).blocks(shards)]
            )
            for name, shards in parts.items()
            if shards
        }
        passages = [found["passages"], *([found["golds"]] if "golds" in found else [])]
        return exact_scores(found["questions"], np.concatenate(passages))

    def mined(
        self, rules: MiningRules, mine_from=("dense", "bm25"), teacher: np.ndarray | None = None
    ) -> list[Verdicts]:
        """Of each question."""
        return [
            verdicts(
                rules,
                key,
                [*dict.fromkeys(self.places[gold] for gold in self.golds[key])],
                self.dense[row],
                self.lexical[row],
                self.texts,
                self.num_passages,
                mine_from,
                None if teacher is None else teacher[row],
            )
            for row, key in enumerate(self.questions)
        ]


def read_lines(path: Path | str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def key_of(line: dict) -> int:
    """The key of the question of a line that was written."""
    return question_key(line["question"] if "question" in line else line["questions"][0], line.get("instruction"))


def assert_is(folder: Path, oracle: Oracle, told: list[Verdicts], scores: np.ndarray) -> None:
    """The files in a folder say what brute force says; scores (Q, P) decided."""
    ids, keys = [*oracle.documents], [*oracle.questions]
    rows = pq.read_table(folder / "negatives.parquet").to_pylist()
    expected = []
    for row, found in enumerate(told):
        ranks = {place: [rank or None for rank in both] for place, *both in found.candidates}
        for place in found.negatives:
            named = dict(zip(("dense_rank", "bm25_rank"), ranks[place], strict=True))
            asked = {"question_key": keys[row], "question": oracle.questions[keys[row]]}
            expected.append({**asked, "passage_id": ids[place], "score": float(scores[row, place]), **named})
    assert rows == expected

    counts = json.loads((folder / "mining.json").read_text())["counts"]
    sizes = {
        name: sum(len(getattr(found, name)) for found in told) for name in ("gold", "same_text", "near_duplicate")
    }
    sizes |= {"suspect": sum(len(found.suspects) for found in told), "negative": len(rows), "questions": len(keys)}
    sizes["candidates"] = sum(len(found.candidates) for found in told)
    assert {name: counts[name] for name in sizes} == sizes
    assert counts["candidates"] == sum(counts[name] for name in (*DROPPED, "suspect", "spare", "negative"))

    suspects = []
    for row, found in enumerate(told):
        lowest = min(float(scores[row, oracle.places[gold]]) for gold in oracle.golds[keys[row]])
        levels = [1 + (float(scores[row, place]) - lowest) / abs(lowest) for place in found.suspects]
        best = sorted(zip(levels, found.suspects, strict=True), key=lambda pair: -pair[0])[:3]
        kept = [pair for pair in zip(levels, found.suspects, strict=True) if pair in best]
        suspects += [(level, keys[row], ids[place], lowest, float(scores[row, place])) for level, place in kept]
    suspects.sort(key=lambda suspect: -suspect[0])
    written = read_lines(folder / "suspects.jsonl")
    assert [
        (key_of(line), Document(**line["rival"]).passage_id, line["gold_score"], line["score"]) for line in written
    ] == [suspect[1:] for suspect in suspects]


RULES = MiningRules(num_negatives=3, margin=1.01, depth=20)


def test_what_is_mined_is_what_brute_force_finds(mined, data, tiny_model):
    oracle = Oracle(data, mined, tiny_model)
    told = oracle.mined(RULES)
    assert_is(mined, oracle, told, oracle.dense)
    assert all(any(getattr(found, name) for found in told) for name in DROPPED)
    assert any(found.suspects for found in told) and any(len(found.negatives) == 3 for found in told)


@pytest.mark.slow
def test_a_killed_run_goes_on_encodes_each_shard_once_and_leaves_the_same_bytes(mined, flags, tmp_path):
    folder = tmp_path / "out"
    log, words = folder / "embeddings" / "shards.jsonl", [*flags, "--output_dir", str(folder)]
    done = kill_half_way("mine", log, *words)
    assert not any((folder / name).exists() for name in FILES)
    run("mine", *words)
    logged = logged_shards(log)
    assert logged[: len(done)] == done
    assert len(logged) == len({*logged}) <= 16  # the kill may come between a shard and its line
    for name in FILES:
        assert (folder / name).read_bytes() == (mined / name).read_bytes(), name


def test_two_workers_and_slices_of_questions_leave_the_same_bytes(mined, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rqa_ray.corpus.miner.QUESTIONS_AT_ONCE", 12)
    monkeypatch.setattr("rqa_ray.corpus.mined_files.RECORDS_AT_ONCE", 5)
    other = mine_again(flags, tmp_path / "out", "--num_workers", "2")
    for name in FILES:
        assert (other / name).read_bytes() == (mined / name).read_bytes(), name
    said = capsys.readouterr().out
    assert "note: empty questions, left out: 1\n" in said
    assert "note: golds that the corpus lacks, encoded beside it and no candidates: 3\n" in said
    assert "note: hard negatives of the input, replaced by those that were mined: 30\n" in said


def test_other_shards_one_ranking_and_an_embedding_teacher_mine_as_brute_force(
    data, flags, tiny_model, other_model, tmp_path, monkeypatch
):
    monkeypatch.setattr("rqa_ray.corpus.plan.FEWEST_ROWS", 17)
    folder = mine_again(flags, tmp_path, "--mine_from", "bm25", "--teacher", other_model, "--seed", "7")
    oracle = Oracle(data, folder, tiny_model)
    teacher = oracle.dot_products(other_model, folder / "teacher" / "embeddings", folder / "questions", None)
    rules = MiningRules(num_negatives=3, margin=1.01, depth=20, seed=7)
    assert_is(folder, oracle, oracle.mined(rules, ("bm25",), teacher), teacher)


def test_the_hybrid_decides_with_the_weight_that_eval_questions_choose(
    mined, data, flags, tiny_model, tmp_path, capsys
):
    held_out = [json.loads(line) for line in Path(data["test_file"]).read_text().splitlines()]
    texts = [line["gold_docs"][0]["page_content"] for line in held_out]
    lines = [line | {"question": " ".join(text.split()[:2])} for line, text in zip(held_out, texts, strict=True)]
    lines[::2] = [line | {"instruction": "find the passage about "} for line in lines[::2]]
    asked = write_lines(tmp_path / "eval.jsonl", lines)
    more = ["--embeddings_path", mined / "embeddings", "--teacher", "hybrid"]
    output = mine_again(flags, tmp_path / "out", *more, "--eval_file", asked, "--mine_from", "dense")
    weight = json.loads((output / "mining.json").read_text())["weight"]
    assert f"teacher: {weight:g} of the model's z-scores and " in capsys.readouterr().out

    oracle = Oracle(data, output, tiny_model, mined / "embeddings")
    corpus = slice(oracle.num_passages)
    bm25 = Bm25(oracle.texts[corpus])
    words = WordScores.of(bm25, [*oracle.questions.values()], oracle.texts[oracle.num_passages :])
    lexical = words.of_pairs(*np.indices(oracle.dense.shape).reshape(2, -1)).reshape(oracle.dense.shape)
    teacher = sum(
        share
        * (part - part[:, corpus].mean(1, keepdims=True))
        / np.maximum(part[:, corpus].std(1, keepdims=True), 1e-9)
        for share, part in ((weight, oracle.dense), (1 - weight, lexical))
    )
    told, ids = oracle.mined(RULES, ("dense",), teacher), [*oracle.documents]
    rows = pq.read_table(output / "negatives.parquet")
    assert rows["passage_id"].to_pylist() == [ids[place] for found in told for place in found.negatives]
    expected = [teacher[row, place] for row, found in enumerate(told) for place in found.negatives]
    np.testing.assert_allclose(rows["score"], expected, atol=1e-4)

    spec = ModelSpec(tiny_model, read_settings(tiny_model, max_seq_length=40))
    embedder = Embedder.load(spec)
    asked = embedder.rows(
        embedder.tokenizer.questions([line["question"] for line in lines], [line.get("instruction") for line in lines])
    )
    folder = EmbeddingFolder(str(mined / "embeddings"))
    passages = torch.cat([block.embeddings for block in folder.blocks([shard.name for shard in folder.shards])])
    golds = [[parse_document(gold).passage_id for gold in line["gold_docs"]] for line in lines]
    known = np.array(ids[: oracle.num_passages])
    questions = [line["question"] for line in lines]
    assert weight == choose_weight(Hybrid(bm25, passages), questions, asked, golds, known) < 1


def test_a_cross_encoder_decides_and_its_scores_are_not_made_twice(
    mined, data, flags, tiny_model, tmp_path, monkeypatch
):
    from sentence_transformers import CrossEncoder

    monkeypatch.setattr("rqa_ray.corpus.teacher.PAIRS_PER_FILE", 200)
    folder = cross_encoder(tmp_path / "teacher", labels=1)
    more = ["--embeddings_path", mined / "embeddings", "--teacher", folder, "--mine_from", "dense"]
    output = mine_again(flags, tmp_path / "out", *more)
    assert not (output / "embeddings").exists()
    oracle, model = Oracle(data, output, tiny_model, mined / "embeddings"), CrossEncoder(folder, device="cpu")
    pairs = [(question, text) for question in oracle.questions.values() for text in oracle.texts]
    teacher = model.predict(pairs, show_progress_bar=False).reshape(len(oracle.questions), -1)
    told = oracle.mined(RULES, ("dense",), teacher)
    rows = pq.read_table(output / "negatives.parquet")
    ids = [*oracle.documents]
    assert rows["passage_id"].to_pylist() == [ids[place] for found in told for place in found.negatives]
    expected = [teacher[row, place] for row, found in enumerate(told) for place in found.negatives]
    np.testing.assert_allclose(rows["score"], expected, atol=1e-5)

    saved = {path: path.stat().st_mtime_ns for path in (output / "teacher").iterdir()}
    for name in FILES:  # as a run that was killed while it scored
        (output / name).unlink()
    (mined_again := min(saved)).unlink()
    mine_again(flags, output, *more)
    after = {path: path.stat().st_mtime_ns for path in (output / "teacher").iterdir()}
    assert len(saved) > 3 and {path for path in after if after[path] != saved[path]} == {mined_again}
    assert pq.read_table(output / "negatives.parquet").equals(rows)


def test_a_line_has_one_question_its_golds_and_its_negatives_with_scores(mined, data, tiny_model):
    oracle, lines = Oracle(data, mined, tiny_model), read_lines(mined / "train.jsonl")
    negatives: dict[int, list[int]] = {}
    for row in pq.read_table(mined / "negatives.parquet").to_pylist():
        negatives.setdefault(row["question_key"], []).append(row["passage_id"])
    asked = [
        (record | {"questions": [question]}, record["gold_docs"])
        for record in read_lines(data["train_file"])
        for question in filter(str.strip, record["questions"])
    ]
    for line, (record, golds) in zip(lines, asked, strict=True):
        assert [line.get(name) for name in ("questions", "instruction")] == [
            record.get(name) for name in ("questions", "instruction")
        ]
        key, row = key_of(line), [*oracle.questions].index(key_of(line))
        ids = [Document(**document).passage_id for document in line["gold_docs"]]
        assert ids == [parse_document(gold).passage_id for gold in golds] and line["chat_history"] == []
        assert line["gold_scores"] == [float(oracle.dense[row, oracle.places[number]]) for number in ids]
        ids = [Document(**document).passage_id for document in line["hard_neg_docs"]]
        assert ids == negatives.get(key, []) and all(document["fmt_content"] for document in line["hard_neg_docs"])
        assert line["hard_neg_scores"] == [float(oracle.dense[row, oracle.places[number]]) for number in ids]


def test_training_reads_the_pairs_of_the_input_with_the_negatives_that_were_mined(mined, data, tiny_model):
    from rqa_ray.data.readers import read_inputs
    from rqa_ray.data.rows import TrainingRows
    from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings

    spec = ModelSpec(tiny_model, read_settings(tiny_model))
    before, after = (
        TrainingRows.from_tables(read_inputs({"train": [str(path)]}, spec)["train"].tables())
        for path in (data["train_file"], mined / "train.jsonl")
    )
    assert after.passage_ids.tolist() == before.passage_ids.tolist()
    negatives, rows = after.negatives, pq.read_table(mined / "negatives.parquet")
    assert {*negatives.ids.tolist()} == {*rows["passage_id"].to_pylist()} and negatives.scores is not None
    for pair in range(len(after)):
        own = negatives.ids[negatives.offsets[pair] : negatives.offsets[pair + 1]]
        assert not {*own.tolist()} & {*after.golds[pair].tolist()}


def test_an_accepted_suspect_is_a_gold_of_its_question_when_the_questions_are_mined_again(
    mined, flags, tmp_path, capsys
):
    assert (mined / "suspects.html").is_file()
    accepted = read_lines(mined / "suspects.jsonl")[0]
    labels = write_lines(tmp_path / "labels.jsonl", [accepted | {"accept": True}])
    more = ["--embeddings_path", mined / "embeddings", "--accepted_labels", labels]
    output = mine_again(flags, tmp_path / "out", *more)
    assert "accepted labels: 1 passages are golds of 1 questions now\n" in capsys.readouterr().out
    assert accepted["id"] not in {suspect["id"] for suspect in read_lines(output / "suspects.jsonl")}
    key, number = key_of(accepted), len(read_lines(mined / "train.jsonl"))
    lines = read_lines(output / "train.jsonl")
    assert len(lines) == number
    for line in lines:
        assert (accepted["rival"] in line["gold_docs"]) >= (key_of(line) == key)
        assert len(line["gold_docs"]) == len(line["gold_scores"])
    rows = pq.read_table(output / "negatives.parquet").to_pylist()
    rival = parse_document(accepted["rival"]).passage_id
    assert not [row for row in rows if (row["question_key"], row["passage_id"]) == (key, rival)]


def test_leaks_are_the_held_out_questions_whose_golds_were_mined(mined, data):
    ids = {*pq.read_table(mined / "negatives.parquet")["passage_id"].to_pylist()}
    held_out = [
        {parse_document(gold).passage_id for gold in line["gold_docs"]} for line in read_lines(data["test_file"])
    ]
    met = [golds & ids for golds in held_out]
    found = json.loads((mined / "mining.json").read_text())["leaks"]
    assert found == {
        "test": {"questions": 30, "with_a_mined_gold": sum(map(bool, met)), "mined_golds": len(set().union(*met))}
    }
    assert found["test"]["mined_golds"] > 0


def test_the_same_command_again_says_that_it_is_there_and_another_is_refused(mined, flags, capsys):
    before = {name: (mined / name).stat().st_mtime_ns for name in FILES}
    run("mine", *flags, "--output_dir", mined)
    assert "mined already; nothing to do" in capsys.readouterr().out
    said = refused(capsys, "mine", *flags, "--output_dir", mined, "--num_negatives", "4", "--mine_depth", "9")
    assert said == (
        f"error: --output_dir {mined}: was mined with another --num_negatives, another --mine_depth; choose another "
        "folder, or replace it with --overwrite_output_dir\n"
    )
    assert {name: (mined / name).stat().st_mtime_ns for name in FILES} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--train_file", "missing.jsonl"], "--train_file missing.jsonl: no such file"),
        (["--test_file", "missing.jsonl"], "--test_file missing.jsonl: no such file"),
        (["--teacher", "./missing"], "./missing: no such model folder"),
        (["--teacher", "{two_labels}"], "gives 2 scores a pair; a cross-encoder with one is needed"),
        (["--mine_margin", "0"], "--mine_margin 0: has to be above 0"),
        (["--mine_margin", "inf"], "--mine_margin inf: has to be above 0 and finite"),
        (["--mine_from", "dense", "sparse"], "--mine_from sparse: has to be dense or bm25"),
        (["--num_negatives", "0"], "--num_negatives 0: has to be at least 1"),
        (["--output_dir", "{folder}"], "has the input {folder}/"),
        (["--output_dir", "{others}"], "{others}: has suspects.jsonl, which no finished run of this job wrote"),
        (
            ["--output_dir", "{others}", "--accepted_labels", "{others}/suspects.jsonl"],
            "has the input {others}/",
        ),
        (["--output_dir", "{newer}"], "{newer}/mining.json: not a report of this version of jobs/mine.py; choose"),
        (["--output_dir", "{newer}/mining.json"], "cannot be a folder (Not a directory)"),
        (["--embeddings_path", "{others}"], "{others}: has files that are no embeddings (suspects.jsonl)"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(flags, change, message, capsys, tmp_path):
    named = {"two_labels": tmp_path / "teacher", "folder": Path(flags[1]).parent}
    for name, file in (("others", "suspects.jsonl"), ("newer", "mining.json")):
        named[name] = tmp_path / name
        named[name].mkdir()
        (named[name] / file).write_text('{"question": "a", "rival": {"text": "b"}, "accept": true}')
    change, message = [word.format(**named) for word in change], message.format(**named)
    cross_encoder(tmp_path / "teacher", labels=2)
    capsys.readouterr()  # transformers says that it writes
    said = refused(capsys, "mine", *flags, "--output_dir", tmp_path / "out", *change)
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bm25_is_asked_for_where_it_is_missing(flags, capsys, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bm25s" else find(name, *more)
    )
    said = refused(capsys, "mine", *flags, "--output_dir", tmp_path / "out")
    assert said == 'error: --mine_from bm25: needs bm25s: pip install -e ".[bm25]"\n'


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faire", "medquad"])
def test_real_data_is_mined_as_by_brute_force(ray_cluster, name, minilm, tmp_path):
    """The whole of Faire; 600 questions and 2,000 passages of MedQuAD."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    names = {"faire": ("train_w_q.jsonl", "documents.pkl"), "medquad": ("train.jsonl.gz", "documents.jsonl.gz")}[name]
    paths = dict(
        zip(("train_file", "full_dataset_file_path"), (str(DATA / name / file) for file in names), strict=True)
    )
    if name == "medquad":
        for flag, number in (("train_file", 600), ("full_dataset_file_path", 2_000)):
            part = tmp_path / f"{flag}.jsonl"
            with gzip.open(paths[flag], "rt") as file:
                part.write_text("".join(islice(file, number)))
            paths[flag] = str(part)
    words = [word for flag, path in paths.items() for word in (f"--{flag}", path)]
    run("mine", *words, "--model_name_or_path", minilm, "--max_seq_length", "128", "--output_dir", tmp_path / "out")
    oracle = Oracle(paths, tmp_path / "out", minilm, max_seq_length=128)
    assert_is(tmp_path / "out", oracle, oracle.mined(MiningRules()), oracle.dense)
