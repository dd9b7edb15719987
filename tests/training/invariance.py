"""One rank of the invariance test: 10 SGD steps of the real trainer on awkward data; started by `spawn`.

The mutations are mistakes that public implementations make; the test has to notice each of them.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from torch.distributed.tensor import DTensor
from transformers import BertConfig, TrainerCallback

from rqa_ray.corpus.bm25 import Bm25
from rqa_ray.corpus.mining import Wordings
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.columns import input_order
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.retriever import candidates as candidates_module
from rqa_ray.retriever import distributed
from rqa_ray.retriever import losses as losses_module
from rqa_ray.retriever.adapters import add_adapters
from rqa_ray.retriever.candidates import Candidates
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import read_settings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.forward_plan import ForwardPlan
from rqa_ray.retriever.losses import InBatchContrastive, Matryoshka
from rqa_ray.retriever.sharding import shard
from rqa_ray.settings import MINED_FROM, LoraSettings, TrainSettings
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.mining_pass import HybridTexts, MiningTexts, TextsHere
from rqa_ray.training.rounds import Rounds
from rqa_ray.training.sharded_trainer import ShardedTrainer
from rqa_ray.training.trainer import ContrastiveTrainer
from tests.builders import table
from tests.models import save_model

GLOBAL_BATCH, STEPS, VOCABULARY = 16, 10, 100
MINED = TrainSettings(mine_negatives=3, mine_every=0.5, mine_depth=8, mine_margin=1.0)  # rounds at steps 0 and 5
TAUGHT = replace(MINED, teacher="hybrid", mine_margin=1.5)
MUTATIONS = ("factor W", "factor 1/W", "no mask", "mask before the gather", "detached gather")


def tables(seed: int = 0, lacking: tuple[int, ...] = ()) -> dict[str, list[pa.Table]]:
    """40 questions over 12 passages: passages repeat in every batch of 16, and every third question has two golds.

    The corpus has 20 passages, but those that it is `lacking`.
    """
    generator = np.random.default_rng(seed)

    def tokens(shortest: int, longest: int) -> list[int]:
        return generator.integers(5, VOCABULARY, generator.integers(shortest, longest)).tolist()

    passages = [tokens(5, 40) for _ in range(20)]
    rows = []
    for question in range(40):
        asked = tokens(3, 12)
        for gold in {question % 12, (question + 5) % 12} if question % 3 == 0 else {question % 12}:
            negatives = generator.choice(np.arange(6, 20), 3, replace=False).tolist()
            rows.append(
                {
                    "file": 0,
                    "line": question,
                    "item": gold,
                    "question_item": 0,
                    "question_key": question,
                    "question_tokens": asked,
                    "passage_id": gold,
                    "passage_tokens": passages[gold],
                    "hard_negative_tokens": [passages[number] for number in negatives],
                    "hard_negative_ids": negatives,
                    "hard_negative_scores": [(7 * question + number) % 5 for number in negatives],
                    "gold_score": gold % 4,
                }
            )
    train = table("train", rows)
    documents = [
        {"line": number, "passage_id": number, "text_hash": number, "tokens": passages[number]}
        for number in range(20)
        if number not in lacking
    ]
    return {"train": [train], "eval": [table("questions", rows)], "corpus": [table("corpus", documents)]}


def mining_texts(data: dict[str, list[pa.Table]], rounds: TrainSettings) -> MiningTexts:
    """What mining would read of the texts of `tables`, whose words are the tokens; BM25's candidates are drawn."""
    rows, corpus = TrainingRows.from_tables(data["train"]), Corpus.from_tables(data["corpus"])
    wordings = Wordings.of(data["train"][0]["question_key"].to_numpy()[input_order(data["train"])], rows.passage_ids)
    missing = np.setdiff1d(rows.passage_ids, corpus.passage_ids)
    passages = [corpus.tokens[text] for text in corpus.text_of]
    passages += [rows.table.tokens[row] for row in rows.table.rows_of(missing)]
    depth = 6 if "bm25" in (rounds.mine_from or MINED_FROM) else 0
    bm25 = np.stack([np.random.default_rng(key).permutation(len(corpus))[:depth] for key in wordings.keys])
    bm25[::4, depth // 2 :] = -1  # questions of few words
    texts, hybrid = [words_of(tokens) for tokens in passages], None
    if rounds.teacher:
        here = TextsHere(Bm25(texts[: len(corpus)]), texts[: len(corpus)])
        asked = [words_of(rows.questions[int(row)]) for row in wordings.first]
        of_eval = [words_of(tokens) for tokens in Questions.from_tables(data["eval"]).tokens]
        hybrid = HybridTexts.of(here, asked, texts[len(corpus) :], of_eval)
    return MiningTexts(wordings, missing, bm25, Signatures.of(texts), hybrid)


def words_of(tokens: np.ndarray) -> str:
    return " ".join(map(str, tokens))


class LearnedTemperature(torch.nn.Module):
    """A loss from outside the package with its own parameter: the temperature is trained too, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(5.0).log())

    @property
    def temperature(self) -> torch.Tensor:
        return 1 / self.log_scale.exp()

    def forward(self, questions: torch.Tensor, candidates: Candidates) -> torch.Tensor:
        scores = questions @ candidates.embeddings.T / self.temperature
        scores = scores.masked_fill(candidates.masked(), float("-inf"))
        return torch.nn.functional.cross_entropy(scores, candidates.labels, reduction="sum")


LOSSES = {
    "own": lambda: InBatchContrastive(0.2),
    "distilled": lambda: InBatchContrastive(0.2, distill_weight=0.5, teacher_temperature=2.0),
    "with a parameter": LearnedTemperature,
    "symmetric": lambda: InBatchContrastive(0.2, is_symmetric=True),
    "all at once": lambda: Matryoshka(InBatchContrastive(0.5, 0.5, 2.0, True, True), (32, 16, 6), (1.0, 0.5, 0.25)),
}


class Recorder(TrainerCallback):
    """Keeps the gradient that the optimizer is about to use, at the first and the last step."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step in (0, STEPS - 1):
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self.gradients.append(torch.cat([whole(parameter.grad).flatten() for parameter in parameters]).clone())


def run(
    rank: int,
    world_size: int,
    folder: str,
    hard_neg_ratio: float,
    gradient_cache: float,
    packed: bool,
    mutation: str,
    loss: str,
    per_question: int,
    mined: TrainSettings | None,
    lora: bool,
    fsdp: bool,
) -> None:
    """Trains; rank 0 saves gradients, losses, weights and facts about the data to `folder`/result.pt."""
    torch.set_num_threads(1)
    if world_size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    mutate(mutation)
    recorder = Recorder()
    of_loss = LOSSES[loss]()
    more = {"per_question": per_question, "loss": of_loss, "rounds": mined, "lora": lora, "fsdp": fsdp}
    trainer = make_trainer(folder, hard_neg_ratio, gradient_cache, rank, world_size, recorder, packed, **more)
    encoder, batches = trainer.model, trainer.batches
    told: list[str] = []
    if trainer.rounds:
        trainer.rounds.tell = told.append
    start = weights(encoder)
    trainer.train()
    trained = weights(encoder)
    if rank == 0:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        torch.save(
            {
                "start": start,
                "weights": trained,
                "gradients": recorder.gradients,
                "sizes": [value.numel() for value in encoder.parameters() if value.requires_grad],
                "losses": losses,
                "of loss": {name: value.detach().clone() for name, value in of_loss.named_parameters()},
                "num_masked": count_masked(batches),
                "rounds": told,
                "round": trainer.rounds and trainer.rounds.round and vars(trainer.rounds.round),
                "num_negatives": len(batches.draw_negatives(0)),
            },
            Path(folder) / "result.pt",
        )
    if world_size > 1:
        torch.distributed.barrier()
        # Not by the way of destructors: DDP's holds the GIL and waits for gloo's thread, which may wait for the GIL.
        os._exit(0)


def random_bert(folder: str, dense: bool = False) -> str:
    """Makes a model without dropout.

    It is made before ranks start, because transformers lets only one of several ranks save.
    """
    model = Path(folder) / "model"
    if model.exists():
        return str(model)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    save_model(model, config)
    if dense:
        parts = [st.Transformer(str(model)), st.Pooling(32, "cls"), st.Dense(32, 16)]
        SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(model), create_model_card=False)
    return str(model)


def make_trainer(
    folder: str,
    hard_neg_ratio: float,
    gradient_cache: float,
    rank: int,
    world_size: int,
    recorder: Recorder,
    packed: bool = False,
    per_question: int = 0,
    max_tokens: int = 150,
    loss: torch.nn.Module | None = None,
    rounds: TrainSettings | None = None,
    lacking: tuple[int, ...] = (),
    lora: bool = False,
    fsdp: bool = False,
    **extra,
) -> ContrastiveTrainer:
    """One rank's trainer, whose questions bring `per_question` hard negatives: a random BERT without dropout, SGD."""
    model = random_bert(folder)
    encoder = load_encoder(model, read_settings(model))
    if lora:
        add_adapters(encoder, LoraSettings(lora_r=4), model, 0)
    own = {
        "output_dir": f"{folder}/scratch-{rank}",
        "max_steps": STEPS,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "ddp_broadcast_buffers": False,
    }
    args = RetrieverTrainingArguments(**(own | extra))
    if fsdp:
        shard(encoder, args.device, args.bf16)
    data = tables(lacking=lacking)
    batches = GlobalBatches(
        TrainingRows.from_tables(data["train"]),
        global_batch_size=GLOBAL_BATCH,
        hard_neg_ratio=hard_neg_ratio,
        seed=3,
        pad_id=0,
        plan=ForwardPlan(max_tokens, packed, gradient_cache, world_size),
        rank=rank,
        world_size=world_size,
        negatives_per_question=per_question,
    )
    evaluator = RetrievalEvaluator(
        Corpus.from_tables(data["corpus"]),
        {"eval": Questions.from_tables(data["eval"])},
        Embedder(encoder, EmbedOptions(0, 150, 8)),
    )
    loss = loss or InBatchContrastive(0.2)
    mining = rounds and Rounds(rounds, mining_texts(data, rounds), batches, evaluator, args.metric_for_best_model)
    kind = ShardedTrainer if fsdp else ContrastiveTrainer
    trainer = kind(encoder, loss, args, batches, evaluator, rounds=mining, callbacks=[recorder])
    trainer._save_checkpoint = lambda *_: None  # no test of the steps needs it
    return trainer


def weights(encoder: Encoder) -> torch.Tensor:
    """Returns all trained weights in one vector."""
    return torch.cat([whole(p.detach()).flatten() for p in encoder.parameters() if p.requires_grad]).clone()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor, put together if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def count_masked(batches: GlobalBatches) -> int:
    """Counts the columns that questions have to ignore in the first global batch."""
    whole = GlobalBatches(batches.take(0)[0], GLOBAL_BATCH, 0.0, batches.seed, 0)[0]
    labels = torch.arange(GLOBAL_BATCH)
    return int(candidates_module.false_negatives(whole.passage_ids, whole.is_passage, whole.gold_ids, labels).sum())


def mutate(mutation: str) -> None:
    """Puts one known mistake into the program."""
    original = losses_module.mean_over_global_batch
    if mutation == "factor W":
        losses_module.mean_over_global_batch = lambda *args: original(*args) * distributed.world_size()
    elif mutation == "factor 1/W":
        losses_module.mean_over_global_batch = lambda *args: original(*args) / distributed.world_size()
    elif mutation == "no mask":
        candidates_module.false_negatives = lambda ids, is_candidate, gold_ids, labels: (~is_candidate).repeat(
            len(labels), 1
        )
    elif mutation == "mask before the gather":
        masked = candidates_module.false_negatives

        def only_local(ids, is_candidate, gold_ids, labels):
            everything = masked(ids, is_candidate, gold_ids, labels)
            local = torch.zeros(len(ids), dtype=torch.bool)
            share = len(ids) // distributed.world_size()
            local[distributed.rank() * share :][:share] = True
            return everything & (local | ~is_candidate)

        candidates_module.false_negatives = only_local
    elif mutation == "detached gather":
        gather = distributed.gather

        def own_slot_only(tensor, ids):
            share, rank = len(tensor), distributed.rank()
            everything = gather(tensor.detach())
            return torch.cat([everything[: rank * share], tensor, everything[(rank + 1) * share :]]), gather(ids)

        distributed.gather_with_gradient = own_slot_only
    elif mutation != "none":
        raise ValueError(mutation)
