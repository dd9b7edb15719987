"""What the user leaves open is chosen by measuring memory, and is the same after a resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from rqa_ray.data.batches import GlobalBatches
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.forward_plan import ForwardPlan
from rqa_ray.settings import TrainSettings
from rqa_ray.training import plan_forward as module
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.plan_forward import TOKENS_PER_BATCH, plan_forward
from tests.builders import random_training_rows

ROWS = random_training_rows(200, max_length=60, num_passages=50, vocabulary=100)


@pytest.fixture
def encoder(tiny_model) -> Encoder:
    return load_encoder(tiny_model, EncoderSettings())


@pytest.fixture
def args(tmp_path) -> RetrieverTrainingArguments:
    return RetrieverTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def batches() -> GlobalBatches:
    return GlobalBatches(ROWS, 64, 0.05, seed=0, pad_id=0)


def graph_bytes_of_a_batch(encoder: Encoder, batch) -> int:
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        embeddings = encoder(batch.token_batches, range(len(batch.token_batches)))
    assert embeddings.requires_grad
    parameters = {value.untyped_storage().data_ptr() for value in encoder.parameters()}
    return sum(size for address, size in kept.items() if address not in parameters)


def optimizer_bytes(encoder: Encoder) -> int:
    """The gradients and Adam's two moments, of weights that are trained."""
    return 12 * sum(value.numel() for value in encoder.parameters() if value.requires_grad)


def free(monkeypatch, num_bytes: float) -> None:
    monkeypatch.setattr(module, "_free_memory", lambda device: num_bytes / module.MEMORY_SHARE)


def test_with_memory_to_spare_the_token_batches_are_large_and_the_graph_is_kept(encoder, args) -> None:
    assert plan_forward(TrainSettings(), args, encoder, batches()) == ForwardPlan(
        TOKENS_PER_BATCH["cpu"], True, False, 1
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_cached_where_the_graph_of_a_batch_does_not_fit(encoder, args, monkeypatch, bf16) -> None:
    args.bf16 = bf16
    settings = TrainSettings(max_tokens_per_chunk=200)
    made = batches().with_plan(plan_forward(settings, args, encoder, batches()))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        graph = graph_bytes_of_a_batch(encoder, made.make(0))
    assert graph > 1e6
    optimizer = optimizer_bytes(encoder)
    for share, least, most in ((1.25, 0, 0), (0.8, 0.1, 0.35), (0.4, 0.5, 0.75), (0.001, 1, 1)):
        free(monkeypatch, optimizer + share * graph)
        assert least <= plan_forward(settings, args, encoder, batches()).gradient_cache <= most


@pytest.mark.parametrize("seed", range(4))  # which decides if the first batch is of the source of short or long texts
def test_batches_of_one_source_each_are_planned_by_the_source_with_the_longest_texts(
    encoder, args, monkeypatch, seed
) -> None:
    lengths = np.array([len(ROWS.questions[row]) + len(ROWS.passages[row]) for row in range(len(ROWS))])
    is_long = (np.argsort(np.argsort(lengths)) >= 100).astype(int)
    made = GlobalBatches(ROWS, 64, 0.0, seed, pad_id=0, sources=is_long)
    settings = TrainSettings(max_tokens_per_chunk=200)
    planned = made.with_plan(plan_forward(settings, args, encoder, made))
    short, long = (graph_bytes_of_a_batch(encoder, planned.make(number)) for number in made.to_plan_from())
    assert short < 0.8 * long
    free(monkeypatch, optimizer_bytes(encoder) + (short + long) / 2)
    assert plan_forward(settings, args, encoder, made).gradient_cache > 0


def test_frozen_weights_need_no_memory_for_gradients_and_moments(encoder, args, monkeypatch) -> None:
    free(monkeypatch, optimizer_bytes(encoder))  # nothing is left for a graph
    assert plan_forward(TrainSettings(max_tokens_per_chunk=200), args, encoder, batches()).gradient_cache == 1
    encoder.transformer.requires_grad_(False)
    encoder.transformer.encoder.layer[-1].output.dense.weight.requires_grad_(True)
    assert optimizer_bytes(encoder) == 12 * 32 * 64
    free(monkeypatch, optimizer_bytes(encoder) + 10e6)
    assert not plan_forward(TrainSettings(max_tokens_per_chunk=200), args, encoder, batches()).gradient_cache


def test_token_batches_are_smaller_where_the_graph_of_one_does_not_fit(encoder, args, monkeypatch) -> None:
    free(monkeypatch, optimizer_bytes(encoder) + 2e6)
    plan = plan_forward(TrainSettings(), args, encoder, batches())
    assert 60 < plan.max_tokens < TOKENS_PER_BATCH["cpu"] and plan.gradient_cache


def test_a_resumed_run_uses_what_was_found_before_and_what_the_user_says_goes_first(encoder, args) -> None:
    before = ForwardPlan(77, packed=False, gradient_cache=0.3, world_size=1)
    assert plan_forward(TrainSettings(), args, encoder, batches(), before) == before
    for said, share in {"false": 0.0, "0.7": 0.7, "true": 1.0}.items():
        settings = TrainSettings(max_tokens_per_chunk=99, gradient_cache=said)
        plan = plan_forward(settings, args, encoder, batches(), before)
        assert plan == replace(before, max_tokens=99, gradient_cache=share)


def test_a_run_resumed_on_another_number_of_ranks_makes_a_plan_of_its_own(encoder, args) -> None:
    before = ForwardPlan(77, packed=False, gradient_cache=0.3, world_size=2)
    assert plan_forward(TrainSettings(), args, encoder, batches(), before).max_tokens == TOKENS_PER_BATCH["cpu"]


def test_a_resumed_run_packs_only_where_it_can_now(encoder, args) -> None:
    encoder.can_pack = False  # as of a compiled one
    assert not plan_forward(TrainSettings(), args, encoder, batches(), ForwardPlan(77, packed=True)).packed


def test_gradient_checkpointing_is_measured_with_what_it_saves(tiny_model, args, monkeypatch) -> None:
    plain, settings = load_encoder(tiny_model, EncoderSettings()), TrainSettings(max_tokens_per_chunk=200)
    made = batches().with_plan(plan_forward(settings, args, plain, batches()))
    graph = graph_bytes_of_a_batch(plain, made.make(0))
    free(monkeypatch, optimizer_bytes(plain) + 0.8 * graph)
    args.gradient_checkpointing = True
    checkpointed = load_encoder(tiny_model, EncoderSettings())
    assert not plan_forward(settings, args, checkpointed, batches()).gradient_cache
