"""Compares what a CUDA GPU computes with what a CPU computes; needs no Ray."""

import numpy as np
import pytest
import torch

from rqa_ray.corpus import topk as search
from rqa_ray.corpus.topk import RunningTopK, search_block
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.retriever.test_attention import LENGTHS, REACHES, assert_attends_as_in_fp32_on_a_cpu
from tests.retriever.test_encoder import token_rows
from tests.retriever.test_model_types import CASES, make
from tests.retriever.test_step import LAYOUTS, MAX_TOKENS, assert_cached_equals_plain, relative_difference, step
from tests.training.invariance import Recorder, make_trainer, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
BOTH_TYPES = pytest.mark.parametrize("bf16", [False, True])


@pytest.fixture
def encoder(tiny_model):
    return load_encoder(tiny_model, EncoderSettings()).cuda()


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
def test_cached_equals_plain_with_the_same_dropout_masks(encoder, max_tokens, packed):
    assert_cached_equals_plain(encoder, max_tokens, packed)


@pytest.mark.parametrize("packed", LAYOUTS)
def test_cached_equals_plain_in_bf16(encoder, packed):
    # As accelerate wraps the forward for the Trainer.
    encoder.forward = torch.autocast("cuda", torch.bfloat16)(type(encoder).forward.__get__(encoder))
    loss, gradients, _ = step(encoder, 30, True, packed)
    plain_loss, plain_gradients, _ = step(encoder, 30, False, packed)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-3, atol=1e-3)
    assert relative_difference(gradients, plain_gradients) < 0.02


@pytest.mark.parametrize("packed", LAYOUTS)
def test_loss_and_gradients_are_those_of_a_cpu(tiny_model, packed):
    encoder = load_encoder(tiny_model, EncoderSettings(), dropout=0.0)
    loss, gradients, _ = step(encoder, 59, True, packed)
    found, on_gpu, _ = step(encoder.cuda(), 59, True, packed)
    torch.testing.assert_close(found.cpu(), loss, rtol=1e-5, atol=1e-5)
    assert relative_difference({name: value.cpu() for name, value in on_gpu.items()}, gradients) < 1e-4


@BOTH_TYPES
def test_packing_works_and_gives_the_embeddings_of_a_cpu(tiny_model, bf16):
    encoder = load_encoder(tiny_model, EncoderSettings(), dropout=0.0).eval()
    rows = token_rows([3, 9, 9, 40, 2, 60])
    expected = Embedder(encoder, EmbedOptions(0, 1000)).rows(rows)
    encoder = load_encoder(tiny_model, EncoderSettings(), dropout=0.0, bf16=bf16).eval().cuda()
    embedder = Embedder(encoder)
    assert embedder.options.packed
    tolerance = 0.03 if bf16 else 1e-5
    torch.testing.assert_close(embedder.rows(rows).cpu(), expected, rtol=0, atol=tolerance)


@BOTH_TYPES
@pytest.mark.parametrize("reach", REACHES)
def test_every_text_attends_to_itself_alone_as_on_a_cpu(reach, bf16):
    token_batch = length_sorted_batches(token_rows(LENGTHS), 1000, 0, packed=True)[0][0]
    if reach.window and not bf16:
        with pytest.raises(RuntimeError, match="no sliding window"):
            assert_attends_as_in_fp32_on_a_cpu(token_batch, reach, torch.float32, "cuda")
    else:
        assert_attends_as_in_fp32_on_a_cpu(token_batch, reach, torch.bfloat16 if bf16 else torch.float32, "cuda")


@BOTH_TYPES
@pytest.mark.parametrize("name", ["gemma3 as EmbeddingGemma", "llama", "mistral", "modernbert", "qwen3"])
def test_causal_and_windowed_models_give_the_embeddings_of_a_cpu(tmp_path, name, bf16):
    source, rows = make(CASES[name], tmp_path), token_rows([3, 9, 9, 40, 2, 60])
    expected = Embedder(load_encoder(source, EncoderSettings(), dropout=0.0).eval()).rows(rows)
    encoder = load_encoder(source, EncoderSettings(), dropout=0.0, bf16=bf16).eval().cuda()
    embedder = Embedder(encoder)
    assert embedder.options.packed == (bf16 or not encoder.window)  # in fp32 no kernel has a window
    found = torch.nn.functional.cosine_similarity(embedder.rows(rows).cpu(), expected)
    assert found.min() > (0.98 if bf16 else 1 - 1e-5)


@BOTH_TYPES
def test_the_bytes_of_a_graph_are_those_that_the_gpu_allocates(tiny_model, bf16):
    encoder = load_encoder(tiny_model, EncoderSettings()).cuda().train()
    token_batch = length_sorted_batches(token_rows([60] * 500), 100_000, 0, packed=True)[0][0].to(torch.device("cuda"))
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        expected = encoder.graph_bytes(token_batch)
        before = torch.cuda.memory_allocated()
        embeddings = encoder([token_batch], [0])
        found = torch.cuda.memory_allocated() - before
    assert embeddings.requires_grad
    assert 0.8 * found < expected < 1.3 * found


@pytest.mark.parametrize("block", [7, 256, 3000])
def test_a_ranking_with_planted_ties_is_that_of_a_cpu(block):
    generator = torch.Generator().manual_seed(0)
    questions, passages = (torch.randn(rows, 64, generator=generator) for rows in (20, 3000))
    passages[1000:1500] = passages[:500]
    found = []
    for device in ("cpu", "cuda"):
        topk = RunningTopK(20, 100, device)
        for positions in torch.arange(3000).split(block):
            search_block(questions.to(device), passages[positions].to(device), positions.to(device), topk)
        found.append([part.cpu() for part in topk.result()])
    assert search._bf16_is_fast(torch.device("cuda"))
    assert torch.equal(found[1][1], found[0][1]) and torch.equal(found[1][0], found[0][0])


@pytest.mark.parametrize("gradient_cache", [False, True])
def test_a_run_makes_the_steps_that_it_makes_on_a_cpu(tmp_path, gradient_cache):
    found = []
    for use_cpu in (True, False):
        recorder = Recorder()
        trainer = make_trainer(str(tmp_path), 0.25, gradient_cache, 0, 1, recorder, packed=True, use_cpu=use_cpu)
        start = weights(trainer.model).cpu()
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert trainer.args.device.type == ("cpu" if use_cpu else "cuda")
        found.append((recorder.gradients[0].cpu(), weights(trainer.model).cpu() - start, np.array(losses)))
    (gradient, moved, losses), (gradient_there, moved_there, losses_there) = found
    assert (gradient_there - gradient).norm() < 1e-5 * gradient.norm()
    assert (moved_there - moved).norm() < 1e-3 * moved.norm() and moved.norm() > 0.1
    np.testing.assert_allclose(losses_there, losses, rtol=1e-4)
