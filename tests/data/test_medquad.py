"""MedQuAD's XML becomes four files that training reads, whose parts share neither pages nor answers."""

import json
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest

from rqa_ray.corpus_settings import MedquadSettings
from rqa_ray.data.medquad import medquad
from rqa_ray.data.records import read_records
from rqa_ray.errors import InputError

ANSWER = "It is a condition of machines that nobody has seen twice."


def write_page(path: Path, url: str, title: str, pairs: list[tuple[str, str]]) -> None:
    """A file of MedQuAD's form."""
    body = "".join(
        f'\t<QAPair pid="{number}">\n\t\t<Question qid="7-{number}" qtype="causes">{escape(question)}</Question>\n'
        f"\t\t<Answer>{escape(answer)}</Answer>\n\t</QAPair>\n"
        for number, (question, answer) in enumerate(pairs, start=1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Document id="7" source="Made" url={quoteattr(url)}>\n'
        f"<Focus>{escape(title)}</Focus>\n<FocusAnnotations><UMLS><CUIs><CUI>C1</CUI></CUIs></UMLS>"
        f"</FocusAnnotations>\n<QAPairs>\n{body}</QAPairs>\n</Document>\n",
        encoding="utf-8",
    )


def convert(source: Path, folder: Path) -> tuple[list[str], dict[str, list[dict]]]:
    lines = medquad(MedquadSettings(source=str(source), output_dir=str(folder))).describe().splitlines()
    names = ("train", "eval", "test", "documents")
    return lines, {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in names}


@pytest.fixture
def source(tmp_path) -> Path:
    """100 pages with two questions each; neighbors in pairs share an answer."""
    folder = tmp_path / "MedQuAD"
    for number in range(100):
        pairs = [
            (f"What is rust {number} ?", f"Rust {number} is {ANSWER}"),
            (f"Who is at risk for rust {number}? ?", f"Those who leave machine {number // 2} out in the rain."),
        ]
        write_page(folder / f"{1 + number // 50}_Made_QA" / f"{number:07d}.xml", f"http://a/{number}", "Rust", pairs)
    return folder


def test_a_pair_becomes_a_question_and_a_passage_without_the_white_space_of_the_xml(tmp_path):
    answer = "Key  Points\n      - It   squeaks.\n   \n   \n   More & more <slowly>."
    write_page(
        tmp_path / "in/1_A_QA/1.xml", "http://a/?b=1&c", "Squeaks &\nrust", [("How to stop squeaks? ?", answer)]
    )
    _, files = convert(tmp_path / "in", tmp_path / "out")
    passage = {
        "page_content": "Key Points\n- It squeaks.\n\nMore & more <slowly>.",
        "metadata": {"source": "http://a/?b=1&c#1", "title": "Squeaks & rust"},
    }
    record = {"questions": ["How to stop squeaks?"], "gold_docs": [passage], "hard_neg_docs": [], "chat_history": []}
    assert files == {"train": [record], "eval": [], "test": [], "documents": [passage]}


def test_a_question_that_comes_again_has_all_answers_and_an_answer_that_comes_again_is_one_passage(tmp_path):
    for page, (question, answer) in enumerate([("What is it?", "1"), ("what is IT ?", "2"), ("Why?", "2")]):
        write_page(tmp_path / f"in/1_A_QA/{page}.xml", f"http://{page}", "It", [(question, answer + ANSWER)])
    _, files = convert(tmp_path / "in", tmp_path / "out")
    golds = {
        record["questions"][0]: [gold["page_content"][0] for gold in record["gold_docs"]] for record in files["train"]
    }
    assert golds == {"What is it?": ["1", "2"], "Why?": ["2"]}
    assert [passage["metadata"]["source"] for passage in files["documents"]] == ["http://0#1", "http://1#1"]


def test_the_parts_share_neither_a_page_nor_an_answer_and_all_golds_are_in_the_corpus(source, tmp_path):
    lines, files = convert(source, tmp_path / "out")
    golds = {
        name: [gold for record in files[name] for gold in record["gold_docs"]] for name in ("train", "eval", "test")
    }
    corpus = {passage["page_content"] for passage in files["documents"]}
    seen: set[str] = set()
    for found in golds.values():
        shared = {gold["metadata"]["source"].split("#")[0] for gold in found} | {
            gold["page_content"] for gold in found
        }
        assert found and not shared & seen and {gold["page_content"] for gold in found} <= corpus
        seen |= shared
    assert len(corpus) == 150
    assert lines[-2] == "150 distinct passages; distinct questions: 152 train, 24 eval, 24 test"


def test_the_same_source_makes_the_same_bytes_and_training_reads_them(source, tmp_path):
    for name in ("one", "two"):
        convert(source, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        kind = "documents" if path.stem == "documents" else "questions"
        assert not [record for _, record in read_records(str(path), kind) if isinstance(record, str)]


def test_pages_are_in_the_order_of_numbers(tmp_path):
    for folder, page in (("10_A_QA", "0000001"), ("2_A_QA", "0000001_10"), ("2_A_QA", "0000001_9")):
        write_page(tmp_path / "in" / folder / f"{page}.xml", f"{folder}/{page}", "", [(f"{page}?", page + ANSWER)])
    _, files = convert(tmp_path / "in", tmp_path / "out")
    order = [passage["metadata"]["source"] for passage in files["documents"]]
    assert order == ["2_A_QA/0000001_9#1", "2_A_QA/0000001_10#1", "10_A_QA/0000001#1"]


def test_questions_without_an_answer_and_files_that_are_no_xml_are_counted_and_named(tmp_path):
    write_page(tmp_path / "in/1_A_QA/1.xml", "http://a", "It", [("How?", ANSWER), ("Why?", ""), ("Where?", "Topics")])
    (tmp_path / "in/1_A_QA/2.xml").write_text("<Document>")
    lines, files = convert(tmp_path / "in", tmp_path / "out")
    assert lines[0] == "3 questions, 1 with an answer; the others are left out"
    assert lines[1].startswith(f"left out: {tmp_path}/in/1_A_QA/2.xml: not XML (")
    assert len(files["documents"]) == 1


def test_a_folder_without_medquad_is_refused_with_the_command_that_gets_it_and_nothing_is_written(tmp_path):
    (tmp_path / "in").mkdir()
    wanted = rf"^--source {tmp_path}/in: no folders of XML.* git clone --depth 1 https://\S+/MedQuAD {tmp_path}/in$"
    with pytest.raises(InputError, match=wanted):
        convert(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
