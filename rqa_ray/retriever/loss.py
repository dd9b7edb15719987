"""In-batch contrastive loss: embeddings and passage ids in, a scalar out.

Shapes: n questions and m passages on this rank (the first n passages are the questions' own, hard negatives and
padding rows follow), W ranks, G questions in the global batch, D dimensions, g gold ids a question.
"""

import torch
import torch.nn.functional as F

from rqa_ray.retriever import distributed


def contrastive_loss(
    questions: torch.Tensor,
    passages: torch.Tensor,
    passage_ids: torch.Tensor,
    is_passage: torch.Tensor,
    gold_ids: torch.Tensor,
    temperature: float,
    global_batch_size: int,
) -> torch.Tensor:
    """Cross-entropy of each local question against the passages of all ranks (InfoNCE, van den Oord et al. 2018).

    Every column whose passage is another gold of the question is masked: it is no negative. The local sum is scaled by
    W / G, so that the mean over ranks (which DDP takes of the gradients) is the mean over the global batch, whatever
    the number of rows a rank has: loss and gradient equal those of one process. The number m has to be equal on all
    ranks.

    Args:
        questions: (n, D) embeddings.
        passages: (m, D) embeddings, m >= n.
        passage_ids: (m,) int64 identities.
        is_passage: (m,) bool, false for padding rows.
        gold_ids: (n, g) int64 identities of all golds of each question, short rows filled with a repeated gold.
        temperature: divides the scores.
        global_batch_size: G.
    """
    num_questions, num_passages = len(questions), len(passages)
    candidates = distributed.gather_with_gradient(passages)  # (W * m, D)
    candidate_ids = distributed.gather(passage_ids)
    is_candidate = distributed.gather(is_passage)

    scores = questions.float() @ candidates.float().T / temperature  # (n, W * m)
    labels = distributed.rank() * num_passages + torch.arange(num_questions, device=scores.device)
    scores = scores.masked_fill(false_negatives(candidate_ids, is_candidate, gold_ids, labels), float("-inf"))
    total = F.cross_entropy(scores, labels, reduction="sum")
    return total * distributed.world_size() / global_batch_size


def false_negatives(
    candidate_ids: torch.Tensor, is_candidate: torch.Tensor, gold_ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """(n, W * m) bool: columns that are padding, or a gold of the row's question other than its own label's column."""
    masked = (~is_candidate).repeat(len(gold_ids), 1)
    for column in gold_ids.unbind(dim=1):  # a loop over g keeps the memory at one (n, W * m) mask
        masked |= candidate_ids[None, :] == column[:, None]
    return masked.scatter_(1, labels[:, None], False)
