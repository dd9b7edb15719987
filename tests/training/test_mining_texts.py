"""What mining in training reads of texts, with real Ray tasks."""

import json

import numpy as np
import pytest

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.bm25 import Bm25
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.data.labels import NO_LABELS
from rqa_ray.data.records import good_records, read_records
from rqa_ray.data.schema import question_key
from rqa_ray.data.share import Share
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.settings import TrainSettings

TWO_CPUS = Workers(1, 2, False)


@pytest.fixture(scope="module")
def read(ray_cluster, tiny_model, files, tmp_path_factory):
    """Training files with a wording of two lines and a gold that the corpus lacks; their blocks, and the corpus."""
    from rqa_ray.data.prepare import write
    from rqa_ray.data.readers import read_inputs

    folder = tmp_path_factory.mktemp("mining-texts")
    lines = [
        {"questions": ["Who  else?", ""], "gold_docs": [{"page_content": "no passage", "metadata": {"source": "x"}}]},
        {
            "questions": ["who else?"],
            "gold_docs": [record.to_dict() for record in good_records([files["full_dataset_file_path"]], "documents")][
                :1
            ],
        },
    ]
    (folder / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write([files["train_file"]], "questions", folder / "train.parquet", skip_bad=False)  # as jobs/prepare.py does
    train = [str(folder / name) for name in ("more.jsonl", "train.parquet")]
    inputs = {"train": train, "corpus": [files["full_dataset_file_path"]], "eval": [files["eval_file"]]}
    blocks = read_inputs(inputs, ModelSpec(tiny_model, read_settings(tiny_model)))
    return inputs, blocks


def test_wordings_missing_golds_rankings_and_signatures_are_those_of_the_files(read) -> None:
    from rqa_ray.data.rows import TrainingRows
    from rqa_ray.training.mining_texts import ClusterTexts, read_mining_texts

    inputs, blocks = read
    rows = TrainingRows.from_tables(blocks["train"].tables())
    settings, corpus = TrainSettings(mine_depth=5, teacher="hybrid"), ClusterTexts(blocks["corpus"].refs, 60, TWO_CPUS)
    found = read_mining_texts(inputs["train"], NO_LABELS, blocks, len(rows), settings, corpus)
    wordings = found.wordings
    assert len(wordings.of_pairs) == len(rows) and wordings.of_pairs[:2].tolist() == [0, 0]
    for number, key in enumerate(wordings.of_pairs):
        assert set(rows.golds[number]) == set(wordings.golds[key])
    assert found.missing.tolist() == [rows.passage_ids[0]]

    documents = list(good_records(inputs["corpus"], "documents"))
    texts: dict[int, str] = {}
    for path in inputs["train"]:
        for _, record in read_records(path, "questions"):
            for question in record.questions:
                texts.setdefault(question_key(question), question)
    bm25 = Bm25([document.fmt_content for document in documents])
    scores, positions = bm25.rank(list(texts.values()), 5)
    assert list(texts) == wordings.keys.tolist()
    assert (found.bm25 == np.where(scores > 0, positions, -1)).all()
    every = np.indices((len(texts), len(documents))).reshape(2, -1)
    lexical = bm25.scores(list(texts.values())).numpy()
    assert (found.hybrid.asked.of_pairs(*every) == lexical.reshape(-1)).all()
    asked = [question for record in good_records(inputs["eval"], "questions") for question in record.questions]
    assert found.hybrid.asked.span == len(documents) + 1 and len(found.hybrid.of_eval.asked.means) == len(asked)
    assert (found.hybrid.of_eval.of_pairs([0] * 5, np.arange(5)) == bm25.scores(asked[:1])[0, :5].numpy()).all()
    assert found.hybrid.eval_bm25.shape[0] == len(asked)

    share = Share(0.5, 3)
    numbers = share.numbers(blocks["train"].tables())
    shared = read_mining_texts(inputs["train"], NO_LABELS, blocks, len(numbers), settings, corpus, share).wordings
    of_pairs = found.of_pairs(numbers, rows.passage_ids[numbers])
    asked = wordings.of_pairs[numbers[shared.first]]
    assert 0 < len(numbers) < len(rows) and (of_pairs.bm25 == found.bm25[asked]).all()
    every = np.indices((len(asked), len(documents))).reshape(2, -1)
    assert (of_pairs.hybrid.asked.of_pairs(*every) == lexical[asked].reshape(-1)).all()
    for name in ("keys", "first", "of_pairs"):
        assert (getattr(of_pairs.wordings, name) == getattr(shared, name)).all()
    assert (of_pairs.wordings.golds.ids == shared.golds.ids).all()

    index = corpus.index
    assert corpus.read_index().num_passages == len(documents) and corpus.index is index, "made once"
    expected = Signatures.of([*(document.fmt_content for document in documents), "Source: x\nContent:\nno passage"])
    assert (found.signatures.exact == expected.exact).all() and (found.signatures.minima == expected.minima).all()


def test_without_bm25_no_rankings_are_made(read) -> None:
    from rqa_ray.training.mining_texts import ClusterTexts, read_mining_texts

    inputs, blocks = read
    settings, corpus = TrainSettings(mine_from=["dense"]), ClusterTexts(blocks["corpus"].refs, 60, TWO_CPUS)
    found = read_mining_texts(inputs["train"][:1], NO_LABELS, blocks, 2, settings, corpus)
    assert found.bm25.shape == (1, 0) and "index" not in vars(corpus), "no index is made"
    with pytest.raises(RuntimeError, match=r"more\.jsonl: it, or a file behind it, changed while it was read"):
        read_mining_texts(inputs["train"][:1], NO_LABELS, blocks, 3, settings, corpus)
