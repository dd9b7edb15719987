"""What a run leaves in output_dir: whole or not there, and readable by whoever comes next."""

import json
from pathlib import Path

import numpy as np
import pytest

from rqa_ray.command_line import parse_job
from rqa_ray.data.schema import Document, parse_document, parse_qa_record, question_key
from rqa_ray.evaluation.metrics import metric_names
from rqa_ray.retriever.saving import EncoderSettings
from rqa_ray.training.outputs import (
    AskedQuestions,
    Corpus,
    ModelState,
    compare,
    model_card,
    print_summary,
    read_json,
    staged,
    write_bad_records,
    write_json,
    write_predictions,
    write_results,
)
from tests.builders import table

JOB = parse_job("--model_name_or_path m --output_dir out --demo_size 9".split())
DOCUMENTS = [Document(f"text {number} ü", "", {"source": f"doc/{number}", "title": "T"}) for number in range(5)]
DOCUMENTS[3].fmt_content = "an embedded text of its own"
ASKED = {"What is 0?": [0], "What is 1 or 3?": [1, 3], "what  IS 0?": [2]}  # the first and the last are one wording


@pytest.fixture
def corpus() -> Corpus:
    lines = [0, 1, 2, 0, 3, 4]  # document 0 comes twice
    rows = [
        {"line": line, "passage_id": DOCUMENTS[number].passage_id, "document": json.dumps(DOCUMENTS[number].to_dict())}
        for line, number in enumerate(lines)
    ]
    return Corpus([table("corpus", rows[4:]), table("corpus", rows[:4])])


@pytest.fixture
def asked() -> AskedQuestions:
    rows = [
        {
            "line": line,
            "item": item,
            "question": question,
            "question_key": question_key(question),
            "passage_id": DOCUMENTS[number].passage_id,
            "gold_doc": json.dumps(DOCUMENTS[number].to_dict()),
        }
        for line, (question, numbers) in enumerate(ASKED.items())
        for item, number in enumerate(numbers)
    ]
    return AskedQuestions([table("questions", rows[2:]), table("questions", rows[:2])])


def state(step: int, positions: list[list[int]], value: float, split: str = "eval") -> ModelState:
    scores = np.linspace(1, 0, len(positions[0]), dtype=np.float32)[None].repeat(len(positions), axis=0)
    rankings = {f"{split}_scores": scores, f"{split}_positions": np.array(positions)}
    return ModelState(step, {name: value for name in metric_names(split)}, rankings)


BEFORE = state(0, [[4, 3, 1, 2, 0], [0, 2, 4, 1, 3], [4, 3, 1, 0, 2]], 0.25)
BEST = state(8, [[0, 2, 1, 3, 4], [3, 1, 4, 2, 0], [2, 0, 1, 3, 4]], 0.75)


# Files


def test_staged_files_are_in_the_folder_when_the_block_has_ended_and_not_before(tmp_path):
    with staged(tmp_path / "out") as staging:
        (staging / "1_Pooling").mkdir()
        (staging / "1_Pooling" / "config.json").write_text("{}")
        (staging / "a.json").write_text("1")
        assert not (tmp_path / "out" / "a.json").exists()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"out", "out/a.json", "out/1_Pooling", "out/1_Pooling/config.json"}


def test_a_failure_while_staging_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "a.json").write_text("earlier")
    with pytest.raises(OSError, match="disk full"), staged(tmp_path) as staging:
        (staging / "a.json").write_text("half")
        (staging / "b.json").write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "earlier"


def test_staged_files_replace_earlier_ones_and_leave_others_alone(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.json", "sub/a.json", "sub/mine.txt"):
        (tmp_path / name).write_text("earlier")
    with staged(tmp_path) as staging:
        (staging / "sub").mkdir()
        for name in ("a.json", "sub/a.json"):
            (staging / name).write_text("new")
    texts = {name: (tmp_path / name).read_text() for name in ("a.json", "sub/a.json", "sub/mine.txt")}
    assert texts == {"a.json": "new", "sub/a.json": "new", "sub/mine.txt": "earlier"}


def test_what_a_killed_run_had_staged_is_not_moved_by_the_next(tmp_path):
    (tmp_path / ".staging").mkdir()
    (tmp_path / ".staging" / "old.json").write_text("half")
    with staged(tmp_path) as staging:
        (staging / "new.json").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["new.json"]


def test_json_is_written_and_read_again_with_nothing_beside_it(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, None, "ü"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_json_file_that_is_not_there_is_none(tmp_path):
    assert read_json(tmp_path / "a.json") is None


# Questions, corpus, predictions


def test_the_corpus_is_in_document_order_without_duplicates(corpus):
    assert corpus.passage_ids.tolist() == [document.passage_id for document in DOCUMENTS]
    assert [parse_document(corpus[position]) for position in range(5)] == DOCUMENTS


def test_questions_come_as_they_were_asked_with_the_golds_of_their_wording(asked):
    assert asked.questions == list(ASKED)
    golds = [[DOCUMENTS[number].passage_id for number in numbers] for numbers in ([0, 2], [1, 3], [0, 2])]
    assert [sorted(found) for found in asked.golds] == [sorted(ids) for ids in golds]


def read_predictions(path: Path, asked, corpus) -> list[dict]:
    write_predictions(path, asked, corpus, BEST, "eval")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_predictions_are_read_again_as_question_records_with_their_golds(tmp_path, asked, corpus):
    records = [parse_qa_record(record) for record in read_predictions(tmp_path / "p.jsonl", asked, corpus)]
    assert [record.questions for record in records] == [[question] for question in ASKED]
    assert records[1].gold_docs == [DOCUMENTS[1], DOCUMENTS[3]]


def test_predictions_have_the_retrieved_documents_with_scores_best_first(tmp_path, asked, corpus):
    retrieved = read_predictions(tmp_path / "p.jsonl", asked, corpus)[1]["retrieved_docs"]
    assert [document["score"] for document in retrieved] == [1, 0.75, 0.5, 0.25, 0]
    assert [parse_document(document) for document in retrieved] == [DOCUMENTS[number] for number in (3, 1, 4, 2, 0)]


# What is said of the result


def test_the_comparison_says_before_after_and_whether_it_is_more_than_chance(asked, corpus):
    # All golds in the top 4: before none of the three, after all; three changes of one sign have p = 2 / 2^3.
    assert compare({"eval": asked}, corpus, BEFORE, BEST) == [
        "eval      3 questions: recall4 0.250 -> 0.750 (+50.0 points), ndcg10 0.250 -> 0.750 (+50.0 points), "
        "sign test p = 0.25"
    ]


def test_a_model_that_ranks_as_before_has_p_1(asked, corpus):
    assert compare({"eval": asked}, corpus, BEFORE, BEFORE)[0].endswith("(+0.0 points), sign test p = 1")


def test_the_results_files_have_the_best_step_and_the_metrics_of_their_split_only(tmp_path):
    write_results(tmp_path, JOB, EncoderSettings(), BEFORE, BEST, {"train_loss": 1.5})
    assert read_json(tmp_path / "train_results.json") == {"train_loss": 1.5, "best_step": 8}
    assert read_json(tmp_path / "eval_results.json") == {"step": 8, **BEST.metrics}
    assert not (tmp_path / "test_results.json").exists()
    assert read_json(tmp_path / "all_args.json") == JOB.to_config()


def test_the_model_card_has_each_metric_before_and_after_and_how_to_use_prefixes():
    card = model_card(JOB, EncoderSettings(query_prefix="query: "), BEFORE, BEST)
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert "| eval_retr/document_recall/recall4 | 0.2500 | 0.7500 |" in card
    assert "latency" not in card
    assert "encode_query" in card
    assert "encode_query" not in model_card(JOB, EncoderSettings(), BEFORE, BEST)


def test_the_summary_says_when_the_pretrained_weights_are_kept(capsys):
    print_summary(JOB, ["a line"], BEFORE)
    text = capsys.readouterr().out
    assert "no evaluated step was better than the pretrained model: its weights are kept\na line\n" in text
    assert "all_args.json --learning_rate 5e-06 --output_dir out-2" in text


def test_the_summary_of_an_improved_model_proposes_a_higher_learning_rate(capsys):
    print_summary(JOB, [], BEST)
    text = capsys.readouterr().out
    assert "best step 8 by eval_retr/document_recall/recall4; model and results in out\n" in text
    assert "weights are kept" not in text
    assert "--learning_rate 2e-05" in text


def test_bad_records_are_listed_in_a_file_and_counted_in_a_line(tmp_path) -> None:
    said = write_bad_records(tmp_path, ["a.jsonl:3: not JSON"], "not JSON 1,000, not UTF-8 2")
    assert said.startswith("warning: bad records, left out: not JSON 1,000, not UTF-8 2; the first are listed in ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad_records.jsonl"]
    assert json.loads((tmp_path / "bad_records.jsonl").read_text()) == {"problem": "a.jsonl:3: not JSON"}
