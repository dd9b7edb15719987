"""The divergence from a teacher, compared with autograd over loops of questions and columns, in float64."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.retriever.candidates import gather_candidates
from rqa_ray.retriever.distillation import TeacherScores, divergence
from rqa_ray.retriever.losses import InBatchContrastive

NAN = float("nan")


@st.composite
def batches(draw):
    """Questions, candidates and a teacher that has scored some pairs; passages repeat, others are masked golds."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_questions, num_passages = draw(st.integers(1, 6)), draw(st.integers(8, 12))
    ids = torch.randint(1, 12, (num_passages,), generator=generator)
    scored = torch.randint(1, 14, (num_questions, draw(st.integers(0, 4))), generator=generator)
    own = ids[:num_questions, None]
    scores = 3 * torch.randn(num_questions, 1 + scored.shape[1], generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = NAN
    return {
        "questions": torch.randn(num_questions, 5, generator=generator),
        "passages": torch.randn(num_passages, 5, generator=generator),
        "ids": ids,
        "is_passage": torch.arange(num_passages) < num_passages - draw(st.integers(0, 2)),
        "gold_ids": torch.cat([own, torch.randint(1, 12, (num_questions, 1), generator=generator)], 1),
        "teacher": TeacherScores(torch.cat([own, scored], 1), scores),
    }


def brute_force(questions, passages, ids, is_passage, gold_ids, teacher, weight, temperature):
    """The sum over questions; the last of several scores of an id counts."""
    total = questions.new_zeros(())
    for row, question in enumerate(questions):
        golds = set(gold_ids[row].tolist())
        columns = [column for column in range(len(ids)) if column == row or int(ids[column]) not in golds]
        columns = [column for column in columns if is_passage[column]]
        logits = {column: (question * passages[column]).sum() / 0.2 for column in columns}
        loss = torch.stack([*logits.values()]).logsumexp(0) - logits[row]
        of_teacher = dict(zip(teacher.ids[row].tolist(), teacher.scores[row].tolist(), strict=True))
        scored = {column: of_teacher.get(int(ids[column]), NAN) for column in columns}
        scored = {column: score for column, score in scored.items() if score == score}
        if set(scored) - {row}:
            scored[row] = max(scored.values())
            wanted = torch.tensor([*scored.values()], dtype=questions.dtype).div(temperature).softmax(0)
            shares = torch.stack([logits[column] for column in scored]).log_softmax(0)
            loss = (1 - weight) * loss + weight * (wanted * (wanted.log() - shares)).sum()
        total = total + loss
    return total


@given(batches(), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.5, 2.0]))
def test_loss_and_gradient_are_those_of_a_loop_over_the_scored_columns(batch, weight, temperature):
    def of(function, dtype):
        leaves = [batch[name].to(dtype).requires_grad_() for name in ("questions", "passages")]
        loss = function(*leaves)
        return loss.detach().double(), *(part.double() for part in torch.autograd.grad(loss, leaves))

    rest = {name: batch[name] for name in ("ids", "is_passage", "gold_ids", "teacher")}

    def ours(questions, passages):
        return InBatchContrastive(0.2, weight, temperature)(questions, gather_candidates(passages, *rest.values()))

    expected = of(lambda *leaves: brute_force(*leaves, **rest, weight=weight, temperature=temperature), torch.float64)
    for value, reference in zip(of(ours, torch.float32), expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-4)


def test_the_own_passage_is_never_wanted_below_another_and_a_masked_passage_is_not_wanted_at_all():
    of_teacher = torch.tensor([[1.0, 3.0, 9.0, NAN]])
    scores = torch.tensor([[0.0, 0.0, float("-inf"), 5.0]])
    total, gradient, is_taught = divergence(scores, of_teacher, torch.tensor([0]), 1.0)
    assert total.item() == 0 and not gradient.any() and is_taught.all()  # both of the scored columns are wanted alike


def test_a_question_without_scored_negatives_keeps_its_whole_cross_entropy():
    questions, passages = torch.randn(2, 4, 8)
    ids = torch.arange(4)
    teacher = TeacherScores(torch.tensor([[0], [1], [2], [3]]), torch.tensor([[1.0], [NAN], [2.0], [0.0]]))
    common = passages, ids, torch.ones(4, dtype=torch.bool), ids[:, None]
    plain = InBatchContrastive(0.2)(questions, gather_candidates(*common))
    torch.testing.assert_close(InBatchContrastive(0.2, 0.5)(questions, gather_candidates(*common, teacher)), plain)
    torch.testing.assert_close(InBatchContrastive(0.2, 1.0)(questions, gather_candidates(*common)), plain)
