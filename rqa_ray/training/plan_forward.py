"""Makes the forward plan of one rank: measures what the user has not set."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import numpy as np
import psutil
import torch

from rqa_ray.data.batches import GlobalBatches
from rqa_ray.retriever import attention, distributed
from rqa_ray.retriever.embedder import TOKENS_PER_BATCH
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.forward_plan import ForwardPlan, cached_share
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches
from rqa_ray.settings import TrainSettings
from rqa_ray.training.arguments import RetrieverTrainingArguments

# largest share of the free memory that graphs may take: of the token batches that are not cached, or of a cached one
MEMORY_SHARE = 0.5
GraphBytes = Callable[[TokenBatch], float]  # returns the memory of the graph per token (bytes)


def plan_forward(
    settings: TrainSettings,
    args: RetrieverTrainingArguments,
    encoder: Encoder,
    batches: GlobalBatches,
    before: ForwardPlan | None = None,
    memory_sharers: int = 1,
) -> ForwardPlan:
    """Chooses the plan that suits the encoder, the device and the batches; moves the encoder to the device.

    Args:
        before: the plan of the run that is resumed. It is kept if the number of ranks is the same; the user's settings
            win.
        memory_sharers: the number of runs that may share this node's memory.
    """
    device = args.device
    if before and before.world_size != args.world_size:
        before = None
    if not encoder.is_sharded:  # shards are on the device
        encoder.to(device)
    if args.gradient_checkpointing:  # here only to measure the memory that it saves; the Trainer does it again
        encoder.activation_checkpointing_enable(activation_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    mixed = torch.autocast(device.type, torch.bfloat16 if args.bf16 else torch.float16, enabled=args.bf16 or args.fp16)
    works = encoder.can_pack and (device.type == "cpu" or _packing_works(encoder, mixed))
    packed = not distributed.any_rank(not works, device) and (before is None or before.packed)
    # The memory of gradients and Adam's two moments is not taken yet. Mixed precision adds a copy of each weight, and
    # the gradient of the copy, in two bytes each.
    num_trained = sum(value.numel() for value in encoder.parameters() if value.requires_grad)
    sharers = memory_sharers if device.type == "cpu" else 1  # on GPUs, each run has its own
    shares = args.world_size if encoder.is_sharded else 1
    of_a_weight = 16 if (args.bf16 or args.fp16) and not encoder.is_sharded else 12
    free = MEMORY_SHARE * _free_memory(device) / sharers - of_a_weight * num_trained / shares

    def graph_bytes(token_batch: TokenBatch) -> float:
        """Returns the memory of the graph per token (bytes)."""
        with mixed:
            return encoder.graph_bytes(token_batch.to(device)) / token_batch.num_tokens

    max_tokens = settings.max_tokens_per_chunk or (before.max_tokens if before else None)
    max_tokens = max_tokens or _fitting_tokens(batches, packed, device, free, graph_bytes)
    cached = cached_share(settings.gradient_cache)
    if cached is None and before:
        cached = before.gradient_cache
    elif cached is None:
        # One backward pass of several token batches adds up whole gradients, which FSDP cuts at its end.
        for_graphs = free - 4 * num_trained * encoder.is_sharded
        cached = _share_to_cache(batches.with_plan(ForwardPlan(max_tokens, packed)), device, for_graphs, graph_bytes)
    return ForwardPlan(max_tokens, packed, cached, args.world_size)


def _fitting_tokens(
    batches: GlobalBatches, packed: bool, device: torch.device, free: float, graph_bytes: GraphBytes
) -> int:
    """Returns the most tokens of a token batch whose graph fits into `free` bytes on every rank."""
    passages = batches.take(0)[0].passages
    longest = passages[int(passages.lengths.argmax())]
    fitting = free / graph_bytes(length_sorted_batches([longest], 1, batches.pad_id, packed)[0][0])
    # A token batch has at least one text, so a limit below the longest text saves nothing.
    max_tokens = min(TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"]), max(int(fitting), len(longest)))
    return int(distributed.gather(torch.tensor([max_tokens], device=device)).min())


def _share_to_cache(batches: GlobalBatches, device: torch.device, free: float, graph_bytes: GraphBytes) -> float:
    """Returns the share of the tokens of a large batch whose graphs do not fit into `free` bytes on some rank."""
    made = [batches.make(number).token_batches for number in batches.to_plan_from()]
    token_batches = max(made, key=lambda some: sum(part.num_tokens for part in some))[::-1]
    # token batches from the shortest texts to the longest
    lengths = [token_batch.lengths[-1] for token_batch in token_batches]
    # Linear in the length: what attention keeps for each token grows with the length, the rest is constant.
    ends = [graph_bytes(token_batch) for token_batch in (token_batches[0], token_batches[-1])]
    a_token = np.interp(lengths, [lengths[0], lengths[-1]], ends)
    tokens = np.array([token_batch.num_tokens for token_batch in token_batches])
    num_kept = int(np.searchsorted(np.cumsum(a_token * tokens), free, side="right"))
    share = torch.tensor([tokens[num_kept:].sum() / tokens.sum()], dtype=torch.float64, device=device)
    return float(distributed.gather(share).max())


def compile_transformer(encoder: Encoder, args: RetrieverTrainingArguments) -> RetrieverTrainingArguments:
    """Compiles the transformer alone, for texts of any number and length; returns arguments that no longer compile.

    The Trainer would compile the whole encoder, and compile it again for every batch, since each has another list of
    token batches.
    """
    import torch._inductor.config

    # with torch's own dropout masks, so that gradient caching can repeat them
    torch._inductor.config.fallback_random = True
    encoder.transformer.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=True)
    encoder.is_compiled = True
    # On other devices packed attention is a loop over texts, or a kernel whose backward pass torch cannot compile.
    encoder.can_pack &= attention.has_flash(args.device) and (args.bf16 or args.fp16)
    args = copy.copy(args)
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    return args


def _packing_works(encoder: Encoder, mixed: torch.autocast) -> bool:
    """Tries out packing in the precision of training and in that of evaluation."""
    with torch.compiler.set_stance("force_eager"):  # because compiling would take a minute
        with mixed:
            works = encoder.packing_works()
        return works and encoder.packing_works()


def _free_memory(device: torch.device) -> int:
    """Returns the free memory for this rank (bytes)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
