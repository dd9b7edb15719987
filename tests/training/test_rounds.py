"""Hard negatives mined in training, in plain processes: what is mined, when, and what a resume finds again."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rqa_ray.corpus.bm25 import Bm25, Hybrid
from rqa_ray.corpus.mining import MiningRules
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.columns import input_order
from rqa_ray.data.rows import Corpus, TrainingRows
from rqa_ray.data.windows import Part, WindowedRows, WindowPlan
from rqa_ray.errors import InputError
from rqa_ray.evaluation.hybrid_weight import choose_weight
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.retriever import distributed
from rqa_ray.settings import TrainSettings
from rqa_ray.training.mining_pass import MiningTexts
from rqa_ray.training.rounds import NEGATIVES_FILE, Round, Rounds, stand_ins
from rqa_ray.training.schedule import rounds_due
from rqa_ray.training.trainer import ContrastiveTrainer
from tests.corpus.mining_oracle import exact_scores, verdicts
from tests.ranks import run_ranks
from tests.training.invariance import (
    MINED,
    Recorder,
    make_trainer,
    mining_texts,
    random_bert,
    tables,
    weights,
    words_of,
)

LACKING = (3, 7, 15)  # passages; the first two are golds


def trainer(folder: Path | str, rounds: TrainSettings = MINED, **options) -> tuple[ContrastiveTrainer, list[str]]:
    """One rank's trainer of the invariance test, which writes checkpoints, and the lines that it tells."""
    options = {"hard_neg_ratio": 0.25, "gradient_cache": False, "packed": True, "per_question": 2} | options
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    made = make_trainer(str(folder), recorder=Recorder(), rounds=rounds, **ranks, **options)
    del made._save_checkpoint  # the real one
    told: list[str] = []
    made.rounds.tell = told.append
    return made, told


def mine_once(folder: str, rounds: TrainSettings) -> tuple[Round, str]:
    """The round that the model mines before the first step, where the corpus lacks golds, and what is told of it."""
    made, told = trainer(folder, rounds, lacking=LACKING)
    found = made.rounds.start(step=0, max_steps=10)
    made.evaluator.look_through(found)
    made.rounds.finish(found, 0.5)
    return made.rounds.round, told[0]


def expected(folder: str, rounds: TrainSettings) -> tuple[list[list[int]], int, float, list[float]]:
    """By brute force: the ids of each question's negatives, the number of suspects, and the hybrid's weight.

    And the hybrid's scores of all golds.
    """
    made, _ = trainer(folder, rounds, lacking=LACKING)
    made.model.eval()
    texts, rows, embed = mining_texts(tables(lacking=LACKING), rounds), made.batches.rows.rows, made.evaluator.embedder
    ids = np.concatenate([made.evaluator.corpus.passage_ids, texts.missing])
    token_rows = [rows.table.tokens[int(rows.table.rows_of(ids[[place]])[0])] for place in range(len(ids))]
    passages = np.concatenate([embed.rows([row]).numpy() for row in token_rows])
    asked = np.concatenate([embed.rows([rows.questions[int(row)]]).numpy() for row in texts.wordings.first])
    rules = MiningRules(rounds.mine_negatives, rounds.mine_margin, rounds.mine_depth, made.batches.seed, round=1)
    words = [words_of(row) for row in token_rows]
    negatives, suspects, weight, gold_scores = [], 0, math.nan, []
    every, teacher = exact_scores(asked, passages), None
    if rounds.teacher:
        in_corpus = len(ids) - len(texts.missing)
        bm25, questions = Bm25(words[:in_corpus]), made.evaluator.questions["eval"]
        hybrid = Hybrid(bm25, torch.from_numpy(passages[:in_corpus]))
        of_eval = [words_of(row) for row in questions.tokens]
        found = choose_weight(hybrid, of_eval, embed.rows([*questions.tokens]), questions.golds, ids[:in_corpus])
        weight = found
        pairs = np.indices(every.shape).reshape(2, -1)
        lexical = texts.hybrid.asked.of_pairs(*pairs).reshape(every.shape)
        teacher = sum(
            share * (part - part[:, :in_corpus].mean(1, keepdims=True)) / part[:, :in_corpus].std(1, keepdims=True)
            for share, part in ((weight, every), (1 - weight, lexical))
        )
    for number, dense in enumerate(every):
        lexical = np.zeros(len(ids) - len(texts.missing), np.float32)
        named = texts.bm25[number][texts.bm25[number] >= 0]
        lexical[named] = np.arange(len(named), 0, -1)
        golds = [int(np.flatnonzero(ids == gold)[0]) for gold in texts.wordings.golds[number]]
        sources = tuple(rounds.mine_from or ("dense", "bm25"))
        key = int(texts.wordings.keys[number])
        decides = None if teacher is None else teacher[number]
        gold_scores += [] if decides is None else decides[golds].tolist()
        found = verdicts(rules, key, golds, dense, lexical, words, len(lexical), sources, decides)
        negatives.append(ids[found.negatives].tolist())
        suspects += len(found.suspects)
    return negatives, suspects, weight, gold_scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Has the model, which ranks of a group cannot write."""
    path = tmp_path_factory.mktemp("rounds")
    random_bert(str(path))
    return path


def by_question(texts: MiningTexts, mined: Round) -> dict[int, list[int]]:
    """The ids of the negatives by the key of their question."""
    negatives = [ids.tolist() for ids in np.split(mined.ids, mined.offsets[1:-1])]
    return dict(zip(texts.wordings.keys.tolist(), negatives, strict=True))


def test_a_share_of_the_pairs_mines_for_its_questions_what_all_pairs_mine(folder) -> None:
    whole, _ = mine_once(str(folder), MINED)
    made, _ = trainer(str(folder), MINED, lacking=LACKING)
    texts, evaluator, blocks = made.rounds.texts, made.evaluator, tables(lacking=LACKING)["train"]
    numbers = np.flatnonzero(texts.wordings.of_pairs % 3 == 1)
    rows = TrainingRows.from_tables(blocks, input_order(blocks)[numbers])
    batches = GlobalBatches(rows, 4, 0.25, made.batches.seed, pad_id=0)
    rounds = Rounds(MINED, texts.of_pairs(numbers, rows.passage_ids), batches, evaluator, made.rounds.metric)
    found = rounds.start(step=0, max_steps=10)
    evaluator.look_through(found)
    rounds.finish(found, 0.5)
    of_share, of_all = by_question(rounds.texts, rounds.round), by_question(texts, whole)
    assert 0 < len(of_share) < len(of_all)
    assert of_share.items() <= of_all.items()
    golds, negatives = evaluator.questions["eval"].golds, set(rounds.round.ids.tolist())
    assert rounds.leaks == {"eval": sum(not negatives.isdisjoint(of_one.tolist()) for of_one in golds)}


@pytest.mark.parametrize(("sources", "teacher"), [(None, None), (["dense"], None), (["bm25"], None), (None, "hybrid")])
def test_a_round_is_that_of_brute_force_for_one_rank_and_for_two_where_the_corpus_lacks_golds_too(
    folder, tmp_path, sources, teacher
) -> None:
    rounds = TrainSettings(mine_negatives=3, mine_margin=1.0, mine_depth=8, mine_from=sources, teacher=teacher)
    negatives, suspects, weight, gold_scores = expected(str(folder), rounds)
    assert suspects > 20 and 3 in map(len, negatives) and not set(LACKING) & {n for row in negatives for n in row}
    for world_size in (1, 2):
        for mined, told in run_ranks(world_size, mine_once, tmp_path, str(folder), rounds):
            assert [part.tolist() for part in np.split(mined.ids, mined.offsets[1:-1])] == negatives
            assert f": 40 questions, {len(mined.ids)} negatives, {suspects} suspects" in told
            np.testing.assert_equal(mined.weight, weight)
            if teacher:
                np.testing.assert_allclose(mined.gold_scores, gold_scores, atol=1e-4)


def test_rows_in_windows_mine_what_rows_in_memory_do(folder) -> None:
    resident, windowed = (trainer(folder, lacking=LACKING)[0] for _ in range(2))
    train = tables()["train"][0]
    cuts = np.linspace(0, len(train), 7).astype(int)
    parts = [Part(0, "f", int(start), None, 100) for start in cuts[:-1]]
    plan = WindowPlan(parts, np.diff(cuts), seed=3, window_bytes=200)

    def fetch(epoch: int, window: int) -> pa.Table:
        """As `_read_window` does: of a passage that rows name again, the tokens come once."""
        slices = [
            train.slice(cuts[part], cuts[part + 1] - cuts[part]) for part in np.sort(plan.epoch(epoch).parts[window])
        ]
        return pa.concat_tables(slices).combine_chunks()

    windowed.rounds.batches = GlobalBatches(WindowedRows(plan, fetch), 16, 0.25, seed=3, pad_id=0)
    assert len(plan.epoch(0).parts) == 3
    for made in (resident, windowed):
        mining = made.rounds.start(0, 10)
        made.evaluator.look_through(mining)
        made.rounds.finish(mining, math.nan)
    one, other = resident.rounds.round, windowed.rounds.round
    assert one.ids.tolist() == other.ids.tolist() and one.offsets.tolist() == other.offsets.tolist()
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_a_round_is_due_before_the_first_step_and_after_each_share_of_the_run_but_its_end() -> None:
    assert [rounds_due(step, 10, None) for step in (0, 5, 10)] == [1, 1, 1]
    assert [rounds_due(step, 12, 1 / 3) for step in (0, 3, 4, 7, 8, 11, 12)] == [1, 1, 2, 2, 3, 3, 3]
    assert [rounds_due(step, 4, 0.01) for step in range(5)] == [1, 2, 3, 4, 4]


def test_an_evaluation_that_is_due_at_the_same_step_encodes_the_corpus_for_both(folder, monkeypatch) -> None:
    def encoded(**options) -> tuple[list[int], list[str]]:
        """The steps at which the corpus is encoded."""
        made, told = trainer(folder, max_steps=6, **options)
        made._save_checkpoint, steps, blocks = lambda *_: None, [], made.evaluator._blocks
        monkeypatch.setattr(made.evaluator, "_blocks", lambda: steps.append(made.state.global_step) or blocks())
        made.train()
        return steps, told

    steps, told = encoded(eval_strategy="steps", eval_steps=3, eval_on_start=True)
    assert steps == [0, 3, 6]
    assert [line.partition(":")[0] for line in told] == ["mined round 1 at step 0", "mined round 2 at step 3"]
    assert encoded(eval_strategy="steps", eval_steps=2)[0] == [0, 2, 3, 4, 6]


@pytest.mark.parametrize(("metric", "worse", "as_good"), [("eval_loss", 2.5, 2.0), ("eval_retr/x/recall4", 0.3, 0.4)])
def test_a_round_stays_where_the_model_that_would_mine_another_is_worse(folder, metric, worse, as_good) -> None:
    made, told = trainer(folder)
    made.rounds.metric = metric

    def mine(step: int, quality: float, is_known: bool) -> None:
        mining = made.rounds.start(step, 10, quality if is_known else math.nan)
        if mining:
            made.evaluator.look_through(mining)
            made.rounds.finish(mining, quality)

    made.rounds.settings = TrainSettings(mine_negatives=3, mine_every=0.2)
    mine(0, as_good, is_known=True)
    first = made.rounds.round
    mine(2, worse, is_known=True)
    mine(4, worse, is_known=False)  # an evaluation says so only when it has looked at the corpus
    assert made.rounds.round is first and made.batches._negatives.round == 1
    name = metric.rpartition("/")[2]
    assert told[1] == (
        f"mined nothing at step 2: {name} is {worse:.3f}, and was {as_good:.3f} when round 1 was mined, which stays"
    )
    assert len(told) == 3 and made.rounds.start(5, 10) is None
    mine(6, as_good, is_known=True)
    assert made.rounds.round.number == made.batches._negatives.round == 4
    mine(8, math.nan, is_known=False)
    assert made.rounds.round.number == 5


def evaluated(made: ContrastiveTrainer, qualities: dict[int, float]) -> None:
    """Makes evaluations find, at some steps, other qualities than they do."""
    evaluate = made.evaluator.evaluate

    def rank(*arguments):
        found = evaluate(*arguments)
        found.splits["eval"].metrics["retr/document_recall/recall4"] = qualities[made.state.global_step]
        return found

    made.evaluator.evaluate = rank


TWICE = TrainSettings(mine_negatives=3, mine_every=0.6)  # rounds at steps 0 and 6
EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}


def go_on(folder: Path, step: int, qualities: dict[int, float]) -> tuple[ContrastiveTrainer, list[str]]:
    """The trainer that has gone on from a checkpoint to the end."""
    resumed, told = trainer(folder, TWICE, **EVALUATED)
    evaluated(resumed, qualities)
    resumed.train(resume_from_checkpoint=str(folder / "scratch-0" / f"checkpoint-{step}"))
    return resumed, told


@pytest.mark.parametrize("second", [0.6, 0.4])
def test_a_run_that_goes_on_in_its_second_round_ends_with_the_weights_of_the_undisturbed_one(
    folder, tmp_path, second
) -> None:
    qualities = {0: 0.5, 3: 0.5, 6: second, 9: 0.5, 10: 0.5}
    shutil.copytree(folder / "model", tmp_path / "model")
    whole, told = trainer(tmp_path, TWICE, **EVALUATED, eval_on_start=True)
    evaluated(whole, qualities)
    whole.train()
    assert ("mined round 2 at step 6" if second > 0.5 else "mined nothing at step 6") in told[1]
    for step in (6, 9):
        resumed, more = go_on(tmp_path, step, qualities)
        assert not more, "the round was in the checkpoint"
        assert torch.equal(weights(resumed.model), weights(whole.model))
        assert resumed.rounds.round.ids.tolist() == whole.rounds.round.ids.tolist()
    # A stop comes before an evaluation, and before mining: who goes on does both.
    shutil.copy(*(tmp_path / "scratch-0" / f"checkpoint-{step}" / NEGATIVES_FILE for step in (3, 6)))
    resumed, _ = trainer(tmp_path, TWICE, **EVALUATED)
    resumed.found, resumed.found_step = Evaluation({"eval": whole.found.splits["eval"]}), 6
    resumed.found.splits["eval"].metrics["retr/document_recall/recall4"] = second
    evaluated(resumed, qualities)
    resumed.train(resume_from_checkpoint=str(tmp_path / "scratch-0" / "checkpoint-6"))
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_margin_that_leaves_no_negative_is_warned_of(folder) -> None:
    made, told = trainer(folder, TrainSettings(mine_negatives=3, mine_margin=1e-9))
    mining = made.rounds.start(0, 10)
    made.evaluator.look_through(mining)
    made.rounds.finish(mining, 0.25)
    assert told[1] == "warning: no hard negative is left at --mine_margin 1e-09; a higher one leaves some"
    assert len(made.batches.draw_negatives(0)) == 0


def test_a_round_of_other_questions_or_passages_is_refused(folder, tmp_path) -> None:
    made, _ = trainer(folder)
    made.rounds.load(tmp_path)  # nothing there: the model of the checkpoint mines
    assert made.rounds.round is None
    mining = made.rounds.start(0, 10)
    made.evaluator.look_through(mining)
    made.rounds.finish(mining, 0.25)
    made.rounds.save(tmp_path)
    again, _ = trainer(folder)
    again.rounds.load(tmp_path)
    assert again.rounds.round.quality == 0.25 and again.rounds.start(0, 10) is None
    other, _ = trainer(folder, lacking=tuple(made.rounds.round.ids[:1]))
    with pytest.raises(InputError, match="its mined hard negatives belong to other training files or"):
        other.rounds.load(tmp_path)


HYBRID = TrainSettings(mine_negatives=3, mine_margin=1.5, teacher="hybrid")


def test_the_scores_of_a_teacher_go_to_the_pairs_and_are_in_the_checkpoint(folder, tmp_path) -> None:
    made, told = trainer(folder, HYBRID)
    mining = made.rounds.start(0, 10)
    made.evaluator.look_through(mining)
    made.rounds.finish(mining, 0.25)
    mined, wordings, negatives = made.rounds.round, made.rounds.texts.wordings, made.batches._negatives
    assert told[1].startswith(f"teacher of round 1: {mined.weight:g} of the model's z-scores and ")
    rows = made.batches.rows.rows
    for pair, question in enumerate(wordings.of_pairs):
        golds = wordings.golds[question].tolist()
        first = wordings.golds.offsets[question] + golds.index(rows.passage_ids[pair])
        assert negatives.gold_scores[pair] == mined.gold_scores[first]
        own = slice(*negatives.offsets[pair : pair + 2])
        assert (negatives.scores[own] == np.split(mined.scores, mined.offsets[1:-1])[question]).all()
    assert made.batches[0].teacher is not None

    made.rounds.save(tmp_path)
    again, _ = trainer(folder, HYBRID)
    again.rounds.load(tmp_path)
    for name in ("scores", "gold_scores"):
        assert (getattr(again.batches._negatives, name) == getattr(negatives, name)).all()


def test_a_pass_that_was_begun_without_the_teacher_is_refused(folder) -> None:
    made, _ = trainer(folder)
    mining = made.rounds.start(0, 10)
    made.evaluator.look_through(mining)
    with pytest.raises(ValueError, match="--teacher hybrid: the pass was begun with another teacher"):
        trainer(folder, HYBRID)[0].rounds.finish(mining, 0.25)


def test_a_checkpoint_of_a_run_without_a_teacher_is_refused_by_one_with_a_teacher(folder, tmp_path) -> None:
    made, _ = trainer(folder)
    mining = made.rounds.start(0, 10)
    made.evaluator.look_through(mining)
    made.rounds.finish(mining, 0.25)
    made.rounds.save(tmp_path)
    with np.load(tmp_path / NEGATIVES_FILE) as kept:  # an earlier version knew no teacher
        earlier = {name: kept[name] for name in kept if name not in ("weight", "gold_scores")}
    np.savez(tmp_path / NEGATIVES_FILE, **earlier)
    trainer(folder)[0].rounds.load(tmp_path)
    with pytest.raises(InputError, match="its hard negatives were mined without --teacher"):
        trainer(folder, HYBRID)[0].rounds.load(tmp_path)


def test_what_stands_in_for_negatives_that_are_not_mined_yet_is_as_many() -> None:
    table = Corpus.from_tables(tables()["corpus"]).table
    negatives = stand_ins(table, num_pairs=5, number=3)
    assert negatives.num_pairs == 5 and np.diff(negatives.offsets).tolist() == [3] * 5
    assert set(negatives.ids) <= set(table.ids) and negatives.round == 0
