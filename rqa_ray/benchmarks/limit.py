"""The limit of a training step on this machine: a plain loop over transformers' model, without a framework.

Texts are sorted by length and cut greedily into token batches with a limit of tokens. Token batches are padded, or
packed with one SDPA call for each text (on CUDA, one kernel for all texts). The graph of all token batches is kept,
and dropout is torch's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel

TEMPERATURE, LEARNING_RATE, MAX_GRAD_NORM = 0.05, 1e-5, 1.0


class PlainLoop:
    """A plain training loop: mean pooling, cosine similarity, in-batch negatives, clipping, AdamW."""

    def __init__(self, model_folder: str, dropout: float, bf16: bool, device: torch.device) -> None:
        self.device, self.bf16 = device, bf16
        model: Any = AutoModel.from_pretrained(model_folder, dtype=torch.float32, trust_remote_code=False)
        if hasattr(model, "pooler"):
            model.pooler = None  # the loop uses the mean of the tokens
        set_dropout(model, dropout)
        self.model: Any = model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(self, questions: list[np.ndarray], passages: list[np.ndarray], max_tokens: int, packed: bool) -> int:
        """Makes one optimizer step on token rows; returns the number of computed tokens."""
        texts = questions + passages
        by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        groups: list[list[int]] = [[]]
        for row in by_length:
            size = sum(len(texts[other]) for other in groups[-1]) if packed else len(groups[-1]) * len(texts[row])
            if groups[-1] and size + len(texts[row]) > max_tokens:
                groups.append([])
            groups[-1].append(row)
        embed = self.packed if packed else self.padded
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            parts = [embed([texts[row] for row in group]) for group in groups]
        places = torch.from_numpy(np.argsort(by_length)).to(self.device)
        self.learn(*torch.cat([part[0] for part in parts])[places].chunk(2))
        return sum(part[1] for part in parts)

    def padded(self, rows: list[np.ndarray], length: int = 0) -> tuple[torch.Tensor, int]:
        """Returns mean token embeddings (B, D) of padded rows, and the number of computed tokens."""
        length = length or max(map(len, rows))
        ids, mask = (np.zeros((len(rows), length), dtype=np.int64) for _ in range(2))
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = row, 1
        on_device = torch.from_numpy(mask).to(self.device)
        tokens = self.model(torch.from_numpy(ids).to(self.device), attention_mask=on_device).last_hidden_state
        weights = on_device[:, :, None].float()
        return (tokens.float() * weights).sum(1) / weights.sum(1), ids.size

    def packed(self, rows: list[np.ndarray]) -> tuple[torch.Tensor, int]:
        """Does the same as `padded`, without padding."""
        lengths = [len(row) for row in rows]
        self.model.set_attn_implementation("limit_packed")
        ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None].to(self.device)
        places = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None].to(self.device)
        tokens = self.model(ids, position_ids=places, lengths=lengths).last_hidden_state[0]
        return torch.stack([part.float().mean(0) for part in tokens.split(lengths)]), ids.numel()

    def learn(self, questions: torch.Tensor, passages: torch.Tensor) -> None:
        """Computes the loss and its gradient, and updates the weights."""
        questions, passages = (nn.functional.normalize(part.float(), dim=1) for part in (questions, passages))
        labels = torch.arange(len(questions), device=self.device)
        nn.functional.cross_entropy(questions @ passages.T / TEMPERATURE, labels).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout of a model; that of attention is a number in some models, and a module in others."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = probability  # type: ignore[assignment]


def _attention(module, query, key, value, attention_mask, lengths, dropout=0.0, scaling=None, **kwargs):
    if query.device.type == "cpu":
        texts = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
        parts = [nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout) for q, k, v in texts]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    offsets = torch.tensor([0, *np.cumsum(lengths)], device=query.device, dtype=torch.int32)
    bounds = offsets, offsets, max(lengths), max(lengths)  # offsets and lengths of the texts as queries, then as keys
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    if query.dtype == torch.float32:
        efficient = torch.ops.aten._efficient_attention_forward
        return efficient(query, key, value, None, *bounds, dropout, 0, True)[0], None
    flash = torch.ops.aten._flash_attention_forward
    return flash(query[0], key[0], value[0], *bounds, dropout, False, False)[0][None], None


AttentionInterface.register("limit_packed", _attention)
AttentionMaskInterface.register("limit_packed", lambda *args, **kwargs: None)
