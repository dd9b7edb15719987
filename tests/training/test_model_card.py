"""The model card is one that the hub reads: metadata, metrics with intervals, and what the model is worse at."""

from dataclasses import replace

from huggingface_hub import ModelCard

from rqa_ray.evaluation.confidence import Difference
from rqa_ray.evaluation.metrics import name_at
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.reports.weaknesses import Weakness
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec
from rqa_ray.training.job import parse_job
from rqa_ray.training.model_card import BASE, BM25, model_card
from tests.training.test_summary import BEFORE, BEST, CHOSEN, JOB, KEPT, compared

WORSE = Weakness(
    BM25, "eval", "source of the gold: a|b", 12, "nDCG@10", 0.5, 0.25, Difference(-0.25, -0.4, -0.1, 0.01)
)


def card_of(folder, job=JOB, best=BEST, choice=CHOSEN, worse=(), not_compared="", **more) -> ModelCard:
    """The card, read back."""
    settings = EncoderSettings(query_prefix=more.pop("query_prefix", ""))
    model = ModelSpec(str(folder), settings, **more)
    rivals = {BASE: compared(BEFORE, best)} | ({} if not_compared else {BM25: compared(BEST, best)})
    model_card(job, model, BEFORE, best, choice, rivals, list(worse), not_compared).save(folder / "card.md")
    return ModelCard.load(folder / "card.md")


def job(*words: str):
    return parse_job(["--model_name_or_path", "x/base", "--output_dir", "out", *words])


def test_the_metadata_has_the_base_model_its_license_and_language_and_tags(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\nbase_model: x/older\n---\n# Base\n")
    card = card_of(
        tmp_path, parse_job(["--model_name_or_path", "x/b", "--output_dir", 'o/a: "b"', "--demo_size", "9"])
    )
    about = card.data.to_dict()
    assert (about["license"], about["language"], about["base_model"]) == ("mit", ["en", "de"], "x/b")
    assert about["tags"][:3] == ["sentence-transformers", "feature-extraction", "sentence-similarity"]
    assert (about["library_name"], about["pipeline_tag"]) == ("sentence-transformers", "sentence-similarity")
    assert card.data.model_name == 'a: "b"' and 'SentenceTransformer("a: \\"b\\"")' in card.text
    local = parse_job(["--model_name_or_path", str(tmp_path), "--output_dir", "out", "--demo_size", "9"])
    assert card_of(tmp_path, local).data.base_model == "x/older"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    about = card_of(tmp_path).data.to_dict()
    assert not {"license", "language", "datasets"} & set(about)


def test_the_metrics_are_in_the_form_of_the_hub_with_their_intervals(tmp_path):
    cut = {name_at("recall@4", 16): 0.5}
    split = BEST.evaluation.splits["eval"]
    best = replace(BEST, evaluation=Evaluation({"eval": replace(split, metrics=split.metrics | cut)}))
    files = "--train_file a/t.jsonl --eval_file a/e.jsonl b/f.jsonl --full_dataset_file_path d".split()
    card = card_of(tmp_path, job(*files, "--matryoshka_dims", "16"), best)
    [results] = card.data.to_dict()["model-index"][0]["results"]
    assert results["dataset"] == {"name": "e.jsonl, f.jsonl", "type": "custom", "split": "eval"}
    assert results["task"]["type"] == "information-retrieval"
    by = {(one["type"], "truncate_dim" in one["args"]): one for one in results["metrics"]}
    assert by["recall@4", False] == {
        "type": "recall@4",
        "value": 0.75,
        "name": "recall@4",
        "args": {"interval_95": [1.0, 1.0]},
    }
    assert len(by) == 8 and by["recall@4", True]["value"] == 0.5
    assert "\n| eval recall@4 | 0.000 (0.000 to 0.000) | 1.000 (1.000 to 1.000) | 1.000 |\n" in card.text
    assert "\n| eval recall@4, cut to 16 dimensions |  | 0.500 |  |\n" in card.text
    assert "latency" not in card.text


def test_the_card_has_neither_folders_nor_credentials(tmp_path):
    files = "--train_file /secret/t.jsonl s3://key:secret@secret/u.jsonl?token=secret --eval_file ~/secret/e.jsonl"
    hub = ["--full_dataset_file_path", "hf://datasets/x/data@main/secret/corpus.parquet"]
    (tmp_path / "secret" / "base").mkdir(parents=True)
    words = ["--model_name_or_path", f"{tmp_path}/secret/base", "--output_dir", f"{tmp_path}/secret/out"]
    card = card_of(tmp_path, parse_job([*words, *files.split(), *hub]))
    assert "secret" not in str(card) and str(tmp_path) not in str(card)
    assert "`base`" in card.text and "on t.jsonl, u.jsonl:" in card.text
    assert card.data.datasets == ["x/data"]


def test_the_card_says_how_to_use_prefixes_prompts_and_fewer_dimensions(tmp_path):
    instructed = (("nq", "Find an answer\nQuery: "),)
    text = card_of(tmp_path, job("--demo_size", "9", "--matryoshka_dims", "16", "8"), prompts=instructed).text
    assert "puts" not in text
    assert 'cut to 16, 8 dimensions:\n`SentenceTransformer("out", truncate_dim=8)`.\n' in text
    assert 'use `model.encode_query(questions, prompt_name="nq")`.\n\n| prompt | text |\n|---|---|\n' in text
    assert '|---|---|\n| nq | "Find an answer\\nQuery: " |\n\n## Metrics' in text
    text = card_of(tmp_path, query_prefix="query: ").text
    assert '\n`encode_query` puts "query: " before each question, and `encode_document` puts "" before' in text
    assert 'SentenceTransformer("out", trust_remote_code=True)' in card_of(tmp_path, trust_remote_code=True).text


def test_the_card_says_what_the_model_is_worse_at_and_against_whom(tmp_path):
    text = card_of(tmp_path, worse=[WORSE]).text
    row = (
        "| BM25 | eval, source of the gold: a/b (12) | nDCG@10 | 0.500 | 0.250 | -25.0 points, 95% interval -40.0 to "
    )
    assert "compared with the pretrained model and with BM25, question" in text
    assert f"|---|---|---|---|---|---|\n{row}-10.0, p = 0.01 |\n\n## How" in text
    text = card_of(tmp_path, not_compared="BM25 was not measured: no.").text
    assert (
        " with the pretrained model, question" in text and " BM25 was not measured: no.\n\nNothing was found." in text
    )
    assert "a test of so few questions often overlooks any loss in eval recall@4, any loss in eval nDCG@10.\n" in text


def test_the_card_says_what_each_candidate_scored_and_why_one_was_chosen(tmp_path):
    text = card_of(tmp_path).text
    assert (
        "\nThe saved model is mixture of 0.7 x step 8 and 0.3 x step 0, chosen on the eval questions. Chosen" in text
    )
    assert " Not chosen: step 8, recall4 0.800, but nDCG@10 is -10.0 points.\n" in text
    assert "\n| candidate | retr/document_recall/recall4 | nDCG@10 | why not |\n|---" in text
    assert "\n| step 0 (pretrained) | 0.2500 | 0.2000 | recall4 decides: 0.2500 against 0.7500 |\n| mixture" in text
    assert "\n| step 8 | 0.8000 | 0.1000 | nDCG@10 is -10.0 points |\n\nTrained by" in text


def test_the_card_says_what_is_unusual_in_the_loss_of_a_trained_model(tmp_path):
    asked = job("--demo_size", "9", "--symmetric_loss", "--learn_temperature", "--matryoshka_dims", "16", "8")
    text = card_of(tmp_path, asked, replace(BEST, temperature=0.04321)).text
    assert (
        "tokens.\nThe loss is symmetric: each gold passage is scored against all questions of the batch too.\n" in text
    )
    assert "\nThe temperature of the loss was learned: 0.05 -> 0.04321." in text
    for usual in (card_of(tmp_path), card_of(tmp_path, asked, BEFORE, KEPT)):
        assert "up to 512 tokens.\n\n## Usage" in usual.text and "truncate_dim" not in usual.text
