"""Writes report.html, the page about a finished run, from what the finish has measured and the state of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rqa_ray.data.share import PairsInShare
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.predictions import Documents
from rqa_ray.places import inside, shown, write_whole
from rqa_ray.reports.run_page import PAGE_FILE, RunPage, SplitPart
from rqa_ray.texts import duration, short
from rqa_ray.training.finish import Choice
from rqa_ray.training.job import Job
from rqa_ray.training.setup import Setup
from rqa_ray.training.trainer import TRAINER_STATE_FILE


def write_report(folder: Path, location: str, make_page: Callable[[], RunPage]) -> str:
    """Writes report.html into a folder, whose files go to a location; returns a line for the user.

    The line is a warning if no report could be made.
    """
    try:
        content = make_page().html().encode()
    except Exception as error:  # whatever is wrong with a page, the model of hours must not be lost for it
        return f"warning: no {PAGE_FILE}: {type(error).__name__}: {error}; the model and the results are whole"
    write_whole(folder / PAGE_FILE, content)
    return f"report: {shown(inside(location, PAGE_FILE))}; open it in a browser"


def page_of_run(
    folder: Path,
    setup: Setup,
    job: Job,
    choice: Choice,
    verdict: list[str],
    compared: Mapping[str, Comparison],
    documents: Documents,
    train_metrics: Mapping[str, Any],
) -> RunPage:
    """Returns the page of a run, whose `trainer_state.json` is in a folder.

    `job` is the job of the run; in a search, this is the winner's job, and the job of `setup` is that of the search.
    """
    state = json.loads((folder / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
    return RunPage(
        name=Path(job.output_dir).name,
        verdict=verdict,
        splits=[SplitPart.of(name, comparison, documents) for name, comparison in compared.items()],
        facts=_facts(setup, job, choice, state, train_metrics),
        data=setup.about_data,
        candidates=[(str(one.candidate), one.value, one.against or one.unproven) for one in choice.scores],
        metric=choice.metric,
        history=state["log_history"],
        chosen_step=choice.candidate.step,
    )


def _facts(
    setup: Setup, job: Job, choice: Choice, state: Mapping[str, Any], train: Mapping[str, Any]
) -> dict[str, str]:
    waits = [entry["data_wait_share"] for entry in state["log_history"] if "data_wait_share" in entry]
    sources = setup.shared.source_keys  # None if the files are streamed; then all runs have the pairs of the setup
    pairs = setup.num_rows if sources is None else PairsInShare.of(job.share, sources).num_pairs
    facts = {
        "pretrained model": str(job.settings.model_name_or_path),
        "model of this run": str(choice.candidate),
        "training pairs": f"{pairs:,}",
        "steps": f"{state['global_step']:,}",
        "passes over the questions": short(float(state["epoch"] or 0)),
        "questions of a step": f"{job.settings.global_batch_size or 0:,}",
        "peak learning rate": short(float(job.training["learning_rate"])),
        "workers": setup.workers.describe(),
    }
    if "train_runtime" in train:
        facts["time of training, with its evaluations"] = duration(train["train_runtime"])
    if waits:
        facts["share of the time that steps waited for data"] = f"{sum(waits) / len(waits):.1%}"
    return facts
