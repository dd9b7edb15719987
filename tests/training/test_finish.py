"""The model that a run leaves: candidates, mixtures, the choice; the same on one and two ranks, and after a kill."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.metrics import retrieval_metrics
from rqa_ray.evaluation.results import Evaluation, SplitResult
from rqa_ray.retriever import distributed
from rqa_ray.retriever.encoder_settings import read_settings
from rqa_ray.retriever.folder import load_encoder, save_encoder
from rqa_ray.training.candidate import BASE, Candidate
from rqa_ray.training.checkpoint_files import StepNote, save_evaluations
from rqa_ray.training.checkpoints import write_manifest
from rqa_ray.training.finish import Choice, EvalQuestions, Finish, checkpoints_kept, finish_here, most_steps
from rqa_ray.training.finish_results import FinishResults
from rqa_ray.training.spec import FinishSpec
from tests.ranks import run_ranks
from tests.training.invariance import Recorder, make_trainer, random_bert

RECALL, NDCG = "eval_retr/document_recall/recall4", "eval_retr/document_ndcg/ndcg10"
QUESTIONS = EvalQuestions([[number] for number in range(40)], np.arange(100), np.arange(40))


def found(*ranks: int, loss: float = 1.0) -> Evaluation:
    """The evaluation of a model that ranks the golds of 40 questions at these places, repeated."""
    positions = np.array([np.roll(np.arange(40, 60), 1) for _ in range(40)])
    positions[np.arange(40), np.resize(ranks, 40)] = np.arange(40)
    metrics = retrieval_metrics(positions, QUESTIONS.gold_ids) | {"loss": loss}
    return Evaluation({"eval": SplitResult(metrics, np.zeros((40, 20), np.float32), positions)})


def choose(kind: str, by_step: dict[int, Evaluation], metric: str = RECALL, mixed: Evaluation | None = None) -> Choice:
    """Chooses when step 0 is the pretrained model, and all means and mixtures score the same."""

    def score(candidate: Candidate) -> Evaluation:
        return (mixed or by_step[0]) if candidate.is_merged else by_step[candidate.step]

    return Finish(kind, metric, QUESTIONS).choose([step for step in by_step if step], score)


def test_a_merge_tries_the_mean_of_the_steps_and_mixtures_with_the_best_of_steps_and_mean() -> None:
    by_step = {0: found(5), 20: found(0, 1, 5), 10: found(0, 5)}
    names = [str(score.candidate) for score in choose("merge", by_step, mixed=found(0, 6)).scores]
    assert names[0] == "step 0 (pretrained)"
    assert names[1] == "mixture of 0.3 x step 20 and 0.7 x step 0"
    assert names[-3:] == ["mean of steps 10, 20", "step 10", "step 20"]
    means = [str(score.candidate) for score in choose("merge", by_step, mixed=found(0)).scores]
    assert means[4] == "mixture of 0.85 x mean of steps 10, 20 and 0.15 x step 0" and len(means) == 8
    assert [len(choose(kind, by_step).scores) for kind in ("none", "best")] == [3, 3]


def test_the_best_by_the_metric_is_chosen_then_by_ndcg_then_the_one_that_has_moved_least() -> None:
    assert choose("best", {0: found(5), 10: found(0), 20: found(0, 6)}).candidate == Candidate((10,))
    assert choose("best", {0: found(1), 10: found(1), 20: found(1)}).candidate == BASE
    by_ndcg = choose("best", {0: found(2), 10: found(1), 20: found(0)})
    assert by_ndcg.candidate == Candidate((20,))
    assert by_ndcg.describe() == [
        "chosen from 3 candidates: step 20, recall4 1.000 on eval; pretrained 1.000",
        "recall4 of step 10 is 1.000 too; nDCG@10 decides between equals: 0.6309 against 1.0000",
    ]
    by_recall = choose("best", {0: found(5), 10: found(0), 20: found(0)})
    assert [by_recall.why_not(one) for one in by_recall.scores] == [
        "recall4 decides: 0.0000 against 1.0000",
        "",
        "between equals, the candidate that has moved least from the pretrained weights is taken",
    ]
    least = choose("merge", {0: found(5), 10: found(0, 5), 20: found(0, 5)}, mixed=found(0)).candidate
    assert least == Candidate((10, 20), 0.3)


def test_a_mixture_whose_gain_over_the_best_step_may_be_chance_is_not_chosen_and_this_is_said() -> None:
    by_step = {0: found(5), 10: found(*[0] * 38, 5, 5)}
    choice = choose("merge", by_step, mixed=found(0))
    assert choice.candidate == Candidate((10,))
    assert choice.describe() == [
        "chosen from 6 candidates: step 10, recall4 0.950 on eval; pretrained 0.000",
        "not chosen: mixture of 0.3 x step 10 and 0.7 x step 0, recall4 1.000, but its gain over step 10 is not "
        "beyond noise, p = 0.5",
    ]
    by_step = {0: found(*[0] * 38, 5, 5), 10: found(5)}
    kept = choose("merge", by_step, mixed=found(0)).describe()[0]
    assert kept == "no evaluated step was better than the pretrained model: its weights are kept"
    assert choose("merge", by_step, "eval_loss", mixed=found(0)).candidate == BASE


def test_a_candidate_that_a_paired_test_speaks_against_is_not_chosen_and_this_is_said() -> None:
    # One question more is right, but the golds of all others have fallen from the first to the fourth place.
    by_step = {0: found(*[0] * 39, 9), 10: found(3), 20: found(0, *[0] * 38, 9)}
    choice = choose("best", by_step)
    assert choice.candidate == BASE
    first, second = choice.describe()
    assert first == "a paired test speaks against what training has made: the pretrained weights are kept"
    assert second.startswith("not chosen: step 10, recall4 1.000, but nDCG@10 is -5") and "p = 0.0001" in second
    assert choose("none", by_step).candidate == Candidate((10,))
    better = choose("best", {**by_step, 20: found(*[0] * 40)})
    assert better.candidate == Candidate((20,))
    assert better.describe() == ["chosen from 3 candidates: step 20, recall4 1.000 on eval; pretrained 0.975"]


def test_a_fall_that_may_be_chance_speaks_against_no_candidate() -> None:
    choice = choose("best", {0: found(*[0] * 39, 9), 10: found(*[0] * 35, *[3] * 5)})
    assert choice.candidate == Candidate((10,)) and choice.describe() == []


def test_a_smaller_loss_is_better_and_one_that_is_no_number_is_worst() -> None:
    by_step = {0: found(5, loss=2.0), 10: found(5, loss=1.5), 20: found(5, loss=float("nan"))}
    assert choose("best", by_step, "eval_loss").candidate == Candidate((10,))


def test_when_no_step_is_better_the_pretrained_model_is_kept() -> None:
    lines = choose("merge", {0: found(0), 10: found(5)}, mixed=found(1)).describe()
    assert lines == ["no evaluated step was better than the pretrained model: its weights are kept"]
    assert choose("merge", {0: found(0)}).candidate == BASE


def test_a_merge_keeps_three_checkpoints_beside_step_0() -> None:
    asked = ("merge", None), ("merge", 9), ("best", None), ("none", 2)
    assert [checkpoints_kept(*one) for one in asked] == [4, 9, 1, 2]
    assert [most_steps(*one) for one in asked] == [3, 3, 1, 2]


# With real models, on one and on two ranks


class Killed(Exception):
    """Stands for the end of a process."""


def evaluator_of(folder: str) -> tuple[RetrievalEvaluator, str]:
    """The evaluator of a random model on tests' questions, and the model's folder."""
    rank, ranks = distributed.rank(), distributed.world_size()
    return make_trainer(folder, 0.0, False, rank, ranks, Recorder()).evaluator, random_bert(folder)


def store_steps(folder: Path) -> FinishSpec:
    """Stores two checkpoints, whose weights are those of the base and some noise."""
    evaluator, model = evaluator_of(str(folder))
    before, checkpoints = evaluator.evaluate(0.2), {}
    for step in (4, 8):
        encoder = load_encoder(model, read_settings(model))
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        checkpoint = folder / f"checkpoint-{step}"
        save_encoder(encoder, str(checkpoint / "model"))
        evaluator.embedder.encoder.load_state_dict(encoder.state_dict())
        save_evaluations(checkpoint, evaluator.evaluate(0.2), before)
        StepNote(step, temperature=step / 10).save(checkpoint)
        write_manifest(checkpoint, step)
        checkpoints[step] = str(checkpoint)
    return FinishSpec("", checkpoints, before, EvalQuestions.of(evaluator).clusters, evaluator.asked)


def finished(folder: str, place: str, told: FinishSpec, killed_at: int = 99) -> tuple[str, list[str]]:
    """Makes the finish on this rank; returns what is chosen, and which candidates were evaluated."""
    evaluator, _ = evaluator_of(folder)
    results, encoder = FinishResults(replace(told, place=place)), None
    encoder = evaluator.embedder.encoder
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    weights = results.weights(base, encoder, Path(f"{place}-{distributed.rank()}"), False)
    evaluated: list[str] = []

    def tell(candidate: Candidate) -> None:
        if len(evaluated) == killed_at:
            raise Killed
        evaluated.append(str(candidate))

    finish = Finish("merge", NDCG, EvalQuestions.of(evaluator))
    try:
        choice = finish_here(finish, told.checkpoints, weights, evaluator, lambda _: 0.2, results, tell)
    except Killed:
        return "", evaluated
    left, chosen = encoder.state_dict(), weights.of(choice.candidate)
    assert all(torch.equal(left[name], chosen[name]) for name in chosen)
    return json.dumps([str(choice.candidate), *(vars(score)["value"] for score in choice.scores)]), evaluated


def on_rank(folder: str, told: FinishSpec) -> tuple[str, list[str]]:
    return finished(folder, f"{folder}/two", told)


def test_a_candidate_is_evaluated_at_the_temperature_that_the_loss_had_learned_at_its_last_step(tmp_path) -> None:
    told = store_steps(tmp_path)
    results = FinishResults(replace(told, place=str(tmp_path / "place")))
    candidates = [BASE, Candidate((4,)), Candidate((4, 8), 0.3)]
    assert [results.temperature(candidate, start=0.2) for candidate in candidates] == [0.2, 0.4, 0.8]
    StepNote(4).save(Path(told.checkpoints[4]))
    assert results.temperature(Candidate((4,)), start=0.2) == 0.2  # of a run before this was noted


def test_two_ranks_and_a_finish_that_was_killed_choose_the_same_and_evaluate_no_candidate_twice(tmp_path) -> None:
    told, folder = store_steps(tmp_path), str(tmp_path)
    undisturbed, evaluated = finished(folder, f"{folder}/one", told)
    assert len(evaluated) == 5 and "mean of steps 4, 8" in evaluated, "those of training are not evaluated again"
    assert finished(folder, f"{folder}/killed", told, killed_at=3) == ("", evaluated[:3])
    assert finished(folder, f"{folder}/killed", told) == (undisturbed, evaluated[3:])
    assert finished(folder, f"{folder}/killed", told) == (undisturbed, [])
    assert run_ranks(2, on_rank, tmp_path, folder, told) == [(undisturbed, evaluated)] * 2
