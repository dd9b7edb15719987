"""The instructions of training files become prompts of the saved model, with names that a person recognizes."""

import json
from pathlib import Path

import pytest

from rqa_ray.data import instructions
from rqa_ray.data.instructions import MOST_PROMPTS, collect, parts_of, to_json, with_prompts
from rqa_ray.data.schema import Document, QARecord
from rqa_ray.data.token_tables import to_table
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec

FILES = ["/data/nq.jsonl.gz", "s3://bucket/msmarco.parquet", "mixed.jsonl"]


def record(instruction: str | None, *questions: str) -> QARecord:
    return QARecord(list(questions), [Document("gold")], [], instruction=instruction)


def found_in(*texts: str | None) -> str:
    found: instructions.Found = {}
    for text in texts:
        collect(found, record(text, "why?"))
    return to_json(found)


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    """A model with a prompt `nq`, and with a query prefix that the user gave."""
    prompts = {"query": "old: ", "nq": "Other: ", "sts": "Compare: "}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return ModelSpec(str(tmp_path), EncoderSettings(query_prefix="Search: "))


def test_a_prompt_is_named_after_its_file_if_the_file_has_one_instruction_else_by_a_number(tmp_path) -> None:
    parts = [(0, found_in("Find: ", "Find: ")), (1, found_in("Rank: ")), (1, found_in("Rank: ")), (2, found_in(None))]
    parts += [(2, found_in("Ask: ", "Find: ")), (2, found_in("Tell: "))]
    model, [line] = with_prompts(ModelSpec(str(tmp_path), EncoderSettings()), parts, FILES)
    named = {"nq": "Find: ", "msmarco": "Rank: ", "instruction-1": "Ask: ", "instruction-2": "Tell: "}
    assert dict(model.prompts) == named
    assert line == (
        "instructions: 4 go before questions of the training files, in place of the query prefix; the saved model has "
        "them as prompts: nq, msmarco, instruction-1, instruction-2"
    )


def test_a_prompt_of_the_model_keeps_its_name_and_its_text(model) -> None:
    parts = [(0, found_in("Find: ")), (1, found_in("Search: ")), (2, found_in("Compare: ", "old: "))]
    named = {"instruction-1": "Find: ", "query": "Search: ", "sts": "Compare: ", "instruction-2": "old: "}
    assert dict(with_prompts(model, parts, FILES)[0].prompts) == named


def test_without_instructions_nothing_is_said_and_the_model_stays_as_it_is(model) -> None:
    assert with_prompts(model, [(0, found_in(None)), (1, found_in(""))], FILES) == (model, [])


def test_a_model_gets_the_first_prompts_and_the_user_is_told_that_there_are_more(model) -> None:
    texts = [f"{number}: " for number in range(3 * MOST_PROMPTS)]
    part = found_in(None, *texts)
    assert len(json.loads(part)) == MOST_PROMPTS + 2  # each record may have its own: what a task returns is bounded
    model, [line] = with_prompts(model, [(0, part)], FILES)
    assert [text for _, text in model.prompts] == texts[:MOST_PROMPTS]
    assert line.startswith("instructions: more than 20 go before ") and " has the first 20 as prompts: inst" in line


def test_parts_come_in_the_order_of_the_files_and_records_without_a_question_do_not_count() -> None:
    found: instructions.Found = {}
    collect(found, record("Unused: "))
    assert found == {}
    rows = [{"file": file, "line": line, "instructions": text} for file, line, text in ((1, 9, "c"), (0, 4, "b"))]
    tables = [to_table(rows, "train"), to_table([{"file": 0, "line": 1, "instructions": "a"}, {"file": 0}], "train")]
    assert parts_of(tables) == [(0, "a"), (0, "b"), (1, "c")]
