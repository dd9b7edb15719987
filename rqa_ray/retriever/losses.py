"""In-batch contrastive loss: embeddings and passage ids in, a scalar out.

Shapes: n questions and m passages on this rank (the first n passages are the questions' own, hard negatives and
padding rows follow), W ranks, G questions in the global batch, D dimensions, g gold ids a question.
"""

import torch

from rqa_ray.retriever import distributed

MAX_SCORES = 2**24  # of one block: 64 MiB, a few times


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
    what_they_are = torch.stack([passage_ids, is_passage.long()], dim=1)
    candidates, numbers = distributed.gather_with_gradient(passages.float(), what_they_are)  # (W * m, D), (W * m, 2)
    candidate_ids, is_candidate = numbers.unbind(1)
    labels = distributed.rank() * len(passages) + torch.arange(len(questions), device=questions.device)
    total = _SummedCrossEntropy.apply(
        questions.float(), candidates, candidate_ids, is_candidate.bool(), gold_ids, labels, temperature
    )
    return total * distributed.world_size() / global_batch_size


class _SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over the questions, in blocks of rows of the score matrix.

    The forward pass computes the gradients too, while it has the scores of a block: the memory is one block, whatever
    the batch. The idea is Liger Kernel's fused linear cross-entropy (Hsu et al. 2024).
    """

    @staticmethod
    def forward(ctx, questions, candidates, candidate_ids, is_candidate, gold_ids, labels, temperature):
        total = questions.new_zeros(())
        of_questions, of_candidates = torch.empty_like(questions), torch.zeros_like(candidates)
        rows_at_once = max(1, MAX_SCORES // len(candidates))
        for start in range(0, len(questions), rows_at_once):
            block = slice(start, start + rows_at_once)
            own = labels[block, None]
            scores = (questions[block] @ candidates.T).div_(temperature)
            masked = false_negatives(candidate_ids, is_candidate, gold_ids[block], labels[block])
            scores.masked_fill_(masked, float("-inf"))
            log_shares = scores.log_softmax(dim=1)
            total -= log_shares.gather(1, own).sum()
            # d total / d scores: the softmax, less one at the label
            gradient = log_shares.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=scores.dtype))
            gradient.div_(temperature)
            of_questions[block] = gradient @ candidates
            of_candidates.addmm_(gradient.T, questions[block])
        ctx.save_for_backward(of_questions, of_candidates)
        return total

    @staticmethod
    def backward(ctx, gradient):
        of_questions, of_candidates = ctx.saved_tensors
        return gradient * of_questions, gradient * of_candidates, None, None, None, None, None


def false_negatives(
    candidate_ids: torch.Tensor, is_candidate: torch.Tensor, gold_ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """(n, W * m) bool: columns that are padding, or a gold of the row's question other than its own label's column."""
    masked = (~is_candidate).repeat(len(gold_ids), 1)
    for column in gold_ids.unbind(dim=1):  # a loop over g keeps the memory at one (n, W * m) mask
        masked |= candidate_ids[None, :] == column[:, None]
    return masked.scatter_(1, labels[:, None], False)
