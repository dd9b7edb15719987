"""The functions of the jobs for notebooks and programs, with the jobs' flags as keyword arguments.

A wrong argument raises InputError with the line that a job prints. No function ends the process: where a job would
exit, the function raises RuntimeError, or KeyboardInterrupt after Ctrl-C. In the examples, `model` is a model folder,
`files` are paths by flag, and `folder` is an empty folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rqa_ray.command_line import parse
from rqa_ray.corpus_settings import EvaluateSettings, MineSettings, SearchSettings

if TYPE_CHECKING:  # each function loads what it needs, so that a search does not import Ray
    from rqa_ray.corpus.mine import MineResult
    from rqa_ray.corpus.search import Answer
    from rqa_ray.evaluation.evaluate import EvaluateResult
    from rqa_ray.training.result import TrainResult
    from rqa_ray.tuning.result import TuneResult


def train(**flags: Any) -> TrainResult:
    """Fine-tunes a retriever, as `jobs/train.py` does: `python jobs/train.py -h` lists the arguments.

    >>> from rqa_ray import train
    >>> small = {"model_name_or_path": model, "max_seq_length": 32, "per_device_train_batch_size": 8}
    >>> result = train(**files, **small, max_steps=4, eval_strategy="no", output_dir=folder / "run")
    >>> result.best_step in (0, 4)
    True
    >>> result.metrics["eval_loss"] <= result.before["eval_loss"] or result.best_step == 4
    True

    Raises:
        InputError: an argument or a file is wrong; nothing was written.
    """
    from rqa_ray.training.job import parse_job
    from rqa_ray.training.train import train

    job = parse_job(flags)
    with _no_exit():
        return train(job)


def tune(**flags: Any) -> TuneResult:
    """Searches learning rate, batch size and more, as `jobs/tune.py` does; the winner is in output_dir.

    >>> from rqa_ray import tune
    >>> searched = tune(
    ...     **files, **small, max_steps=4, tune_learning_rate=[1e-4, 1e-3], num_samples=2, output_dir=folder / "search"
    ... )
    >>> len(searched.trials), 1e-4 <= searched.winner.values["learning_rate"] <= 1e-3
    (2, True)

    Raises:
        InputError: an argument or a file is wrong; nothing was written.
    """
    from rqa_ray.tuning.options import parse_search
    from rqa_ray.tuning.tune import tune

    asked = parse_search(flags)
    with _no_exit():
        return tune(asked)


def evaluate(**flags: Any) -> EvaluateResult:
    """Ranks a corpus for questions whose answers are known, as `jobs/evaluate.py` does.

    >>> from rqa_ray import evaluate
    >>> found = evaluate(
    ...     model=folder / "run",
    ...     document_path=files["full_dataset_file_path"],
    ...     eval_data_path=files["test_file"],
    ...     output_dir=folder / "evaluation",
    ... )
    >>> 0 <= found.metrics["dense"]["test_retr/document_recall/recall4"] <= 1
    True

    Raises:
        InputError: an argument or a file is wrong; nothing was written.
    """
    from rqa_ray.evaluation.evaluate import evaluate
    from rqa_ray.reports.evaluation_page import write_evaluation_report

    settings = parse(EvaluateSettings, flags)
    with _no_exit():
        return evaluate(settings, write_evaluation_report)


def mine(**flags: Any) -> MineResult:
    """Finds hard negatives for training questions, as `jobs/mine.py` does; train.jsonl in output_dir has them.

    >>> from rqa_ray import mine
    >>> mined = mine(
    ...     model=folder / "run",
    ...     document_path=files["full_dataset_file_path"],
    ...     train_file=files["train_file"],
    ...     num_negatives=2,
    ...     output_dir=folder / "mined",
    ... )
    >>> mined.mining.counts["negative"] <= 2 * mined.mining.counts["questions"]
    True

    Raises:
        InputError: an argument or a file is wrong; nothing was written.
    """
    from rqa_ray.corpus.mine import mine
    from rqa_ray.evaluation.hybrid_weight import weigh

    settings = parse(MineSettings, flags)
    with _no_exit():
        return mine(settings, weigh)


def search(**flags: Any) -> Answer:
    """Finds passages for a question, as `jobs/search.py` does; needs no Ray.

    >>> from rqa_ray import search
    >>> answer = search(
    ...     question="alpha beta", model=folder / "run", embeddings_path=folder / "evaluation" / "embeddings", top_k=3
    ... )
    >>> [type(hit.document.page_content) for hit in answer.hits]
    [<class 'str'>, <class 'str'>, <class 'str'>]

    Raises:
        InputError: an argument or a file is wrong.
    """
    from rqa_ray.corpus.search import search

    return search(parse(SearchSettings, flags))


@contextmanager
def _no_exit() -> Iterator[None]:
    try:
        yield
    except SystemExit as end:
        if end.code in (130, 143):  # a signal has stopped the job
            raise KeyboardInterrupt from None
        raise RuntimeError("the job failed; the lines above say why") from None
