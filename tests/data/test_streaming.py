"""Streaming with real Ray tasks: rows are counted before training, then read one window at a time."""

import gzip
import json

import pytest

from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.share import Share
from rqa_ray.data.windows import WindowedRows
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import read_settings


@pytest.fixture(scope="module")
def spec(ray_cluster, tiny_model):
    from rqa_ray.retriever.encoder_settings import ModelSpec

    return ModelSpec(str(tiny_model), read_settings(str(tiny_model), max_seq_length=16))


@pytest.fixture
def small_windows(monkeypatch):
    from rqa_ray.data import streaming

    monkeypatch.setattr(streaming, "PART_BYTES", 2_000)
    monkeypatch.setattr(streaming, "SMALLEST_PART", 1_000)
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 30_000)


def lines(count: int, first: int = 0) -> list[str]:
    records = [
        {
            "questions": [f"question {number}", f"other {number}"][: 1 + number % 2],
            "gold_docs": [{"page_content": f"passage {number}", "metadata": {"source": f"s{number // 50}"}}],
            "hard_neg_docs": [{"page_content": f"passage {number + 1}", "metadata": {"source": "n"}}],
        }
        for number in range(first, first + count)
    ]
    return [json.dumps(record) + "\n" for record in records]


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """A plain file, a compressed file and a Parquet file: 600 records, 900 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "1.jsonl").write_text("".join(lines(400)))
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress("".join(lines(100, 400)).encode()))
    rows = [json.loads(line) for line in lines(100, 500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "3.parquet", row_group_size=7)
    return [str(tmp_path / name) for name in ("1.jsonl", "2.jsonl.gz", "3.parquet")]


def ids_of(source: WindowedRows, first: int, count: int) -> list[tuple[int, int]]:
    rows, numbers = source.take(first, count)
    return [(int(rows.passage_ids[n]), tuple(rows.questions[n].tolist()).__hash__()) for n in numbers]


def test_an_epoch_has_the_rows_of_a_resident_run_once_over_two_workers(
    spec, paths, small_windows, monkeypatch
) -> None:
    import ray

    from rqa_ray.data.readers import read_inputs
    from rqa_ray.data.streaming import fetcher, open_stream

    stream = open_stream(paths, spec)
    assert len(stream.parts) > 30 and stream.counts.num_questions == 900 and stream.counts.num_negatives == 600
    plan, store = stream.serve(seed=3, busy_cpus=2)
    assert len(plan.epoch(0).parts) > 4

    @ray.remote(num_cpus=0)
    def worker(rank: int) -> list:
        source = WindowedRows(plan, fetcher(store))
        return [item for batch in range(rank, 18, 2) for item in ids_of(source, 50 * batch, 50)]

    seen = sum(ray.get([worker.remote(0), worker.remote(1)]), [])
    tables = read_inputs({"train": paths}, spec)["train"].tables()
    rows = TrainingRows.from_tables(tables)
    resident = [(int(rows.passage_ids[n]), tuple(rows.questions[n].tolist()).__hash__()) for n in range(len(rows))]
    assert sorted(seen) == sorted(resident) and len(set(seen)) == 900

    share = Share(0.4, 1)
    part = open_stream(paths, spec, share=share)
    kept = [resident[number] for number in share.numbers(tables)]
    assert part.shared.describe() == f"{len(kept)} of 900 pairs" and kept
    plan, store = part.serve(seed=3, busy_cpus=0)
    assert sorted(ids_of(WindowedRows(plan, fetcher(store)), 0, len(kept))) == sorted(kept)


def test_the_same_seed_streams_the_same_rows_again(spec, paths, small_windows) -> None:
    from rqa_ray.data.streaming import fetcher, open_stream

    def order(seed: int) -> list:
        plan, store = open_stream(paths, spec).serve(seed, busy_cpus=0)
        return ids_of(WindowedRows(plan, fetcher(store)), 0, 900)

    assert order(1) == order(1) != order(2)


def test_a_bad_line_is_named_before_training(spec, paths, small_windows) -> None:
    from rqa_ray.data.streaming import open_stream

    content = lines(400)
    content[333] = '{"questions": 3}\n'
    with open(paths[0], "w") as file:
        file.writelines(content)
    with pytest.raises(InputError, match=r"1\.jsonl:334: "):
        open_stream(paths, spec)
    stream = open_stream(paths, spec, skip_bad=True)
    assert sum(stream.skipped.kinds.values()) == 1 and ":334: " in stream.skipped.first[0]
    assert stream.num_rows.sum() == 900 - 2


def test_a_passage_with_another_embedded_text_in_another_part_is_refused_or_counted(
    spec, paths, small_windows, monkeypatch
) -> None:
    from rqa_ray.data import streaming

    content = lines(400)
    other = {"page_content": "passage 7", "metadata": {"source": "s0", "title": "Of another title"}}
    content[399] = json.dumps({"question": "?", "gold_docs": [other]}) + "\n"
    with open(paths[0], "w") as file:
        file.writelines(content)
    with pytest.raises(
        InputError, match=r"1\.jsonl:400: the same passage as in .*1\.jsonl:8 .* 'Source: s0\\nTitle: Of ano"
    ):
        streaming.open_stream(paths, spec)
    stream = streaming.open_stream(paths, spec, skip_bad=True)
    assert list(stream.skipped.kinds.values()) == [1] and ":400: " in stream.skipped.first[0]
    monkeypatch.setattr(streaming, "LOOKED_AT_BYTES", 1)  # of so many passages one is looked at, and it is not this
    assert streaming.open_stream(paths, spec).counts.num_questions == 899


def test_a_range_of_bad_records_only_is_skipped_like_any_other(spec, tmp_path, small_windows) -> None:
    from rqa_ray.data.streaming import open_stream

    (tmp_path / "f.jsonl").write_text("".join(lines(50) + ["[]\n"] * 5_000 + lines(50, 50)))
    stream = open_stream([str(tmp_path / "f.jsonl")], spec, skip_bad=True)
    assert (stream.num_rows.sum(), stream.skipped.kinds) == (150, {"a record has to be an object": 5_000})


def test_a_file_without_a_question_is_refused(spec, tmp_path, paths, small_windows) -> None:
    from rqa_ray.data.streaming import open_stream

    (tmp_path / "blank.jsonl").write_text("\n" * 9_000)
    with pytest.raises(InputError, match=r"blank\.jsonl: it has no good record with a question"):
        open_stream([*paths, str(tmp_path / "blank.jsonl")], spec)


def test_a_large_compressed_file_cannot_be_streamed_and_says_what_to_do(
    spec, paths, small_windows, monkeypatch
) -> None:
    from rqa_ray.data import streaming

    monkeypatch.setattr(streaming, "LARGEST_PART", 1_000)
    with pytest.raises(InputError, match=r"2\.jsonl\.gz: a compressed file .* jobs/prepare\.py"):
        streaming.open_stream(paths, spec)


def test_a_large_row_group_among_small_ones_is_refused_too(spec, tmp_path, small_windows, monkeypatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rqa_ray.data import streaming

    tables = [pa.Table.from_pylist([json.loads(line) for line in lines(count)]) for count in (7, 7, 400)]
    with pq.ParquetWriter(tmp_path / "f.parquet", tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    assert streaming.open_stream([str(tmp_path / "f.parquet")], spec).counts.num_questions == 10 + 10 + 600
    monkeypatch.setattr(streaming, "LARGEST_PART", 20_000)
    with pytest.raises(InputError, match=r"f\.parquet: a row group of about"):
        streaming.open_stream([str(tmp_path / "f.parquet")], spec)


def test_a_file_that_changes_while_training_is_noticed(spec, paths, small_windows) -> None:
    from rqa_ray.data.streaming import fetcher, open_stream

    plan, store = open_stream(paths[:1], spec).serve(seed=0, busy_cpus=0)
    with open(paths[0], "w") as file:
        file.writelines(lines(300))
    with pytest.raises(Exception, match="a file changed in training"):
        WindowedRows(plan, fetcher(store)).take(0, 10)


def test_many_questions_for_a_passage_make_smaller_windows(spec, tmp_path) -> None:
    from rqa_ray.data import streaming

    passage = {"page_content": " ".join(["word"] * 15), "metadata": {}}
    records = [{"questions": [f"q{i}" for i in range(number)], "gold_docs": [passage] * 9} for number in (1, 90)]
    sizes = []
    for number, record in enumerate(records):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(record) + "\n")
        sizes.append(streaming.open_stream([str(tmp_path / f"{number}.jsonl")], spec).window_bytes)
    assert sizes[1] < sizes[0] / 10


def test_size_decides_by_the_tokenized_rows_not_by_the_file(spec, paths, monkeypatch) -> None:
    from rqa_ray.data import streaming

    assert not streaming.is_too_large(paths, spec)
    monkeypatch.setattr(streaming, "RESIDENT_SHARE", 1e-6)
    assert streaming.is_too_large(paths, spec)
