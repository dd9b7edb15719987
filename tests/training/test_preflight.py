"""Preflight samples each source of the training files, and says of it what a run would say."""

from rqa_ray.data.labels import NO_LABELS
from rqa_ray.data.sources import SourceCount, Sources
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.training.preflight import sample_sources
from tests.conftest import write_lines
from tests.training.invariance import random_bert


def test_pairs_and_instructions_are_those_of_the_first_records_of_each_source(tmp_path):
    def records(number: int, instruction: str) -> list[dict]:
        golds = [{"text": "a"}, {"text": "b"}]
        return [{"question": f"{one:03}?", "gold_docs": golds, "instruction": instruction} for one in range(number)]

    files = [
        write_lines(tmp_path / "nq.jsonl", records(40, "Find: ")),
        write_lines(tmp_path / "faq.jsonl", records(20, "Rank: ")),
    ]
    sources = Sources((*files, "nq.*"), (0, 1))
    model = random_bert(str(tmp_path))
    found, said = sample_sources(sources, files, NO_LABELS, 0.5, ModelSpec(model, read_settings(model)))
    assert [count.name for count in found] == [*files, "nq.*"] and found[2] == SourceCount("nq.*", 0, 0)
    for count, number in zip(found, (40, 20), strict=False):
        assert (count.pairs, count.questions) == (number, number / 2)
    assert said[0].startswith("instructions: 2 go before ") and said[0].endswith(" as prompts: nq, faq")
