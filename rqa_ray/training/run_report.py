"""Writes report.html, the page about a finished run, from what the finish has measured and the state of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rqa_ray.evaluation.predictions import AskedQuestions, Documents
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import inside, shown, write_whole
from rqa_ray.reports.run_page import PAGE_FILE, RunPage, SplitPart
from rqa_ray.texts import duration, short
from rqa_ray.training.finish import Choice
from rqa_ray.training.job import Job
from rqa_ray.training.setup import Setup
from rqa_ray.training.trainer import TRAINER_STATE_FILE


def write_report(
    staging: Path,
    setup: Setup,
    choice: Choice,
    verdict: list[str],
    before: Evaluation,
    splits: Mapping[str, AskedQuestions],
    documents: Documents,
    train_metrics: Mapping[str, Any],
) -> str:
    """Writes report.html into a folder that has the `trainer_state.json` of the run; returns a line for the user.

    The line is a warning if no report could be made.
    """
    arguments = setup, choice, verdict, before, splits, documents, train_metrics
    try:
        content = _page(staging, *arguments).html().encode()
    except Exception as error:  # whatever is wrong with a page, the model of hours must not be lost for it
        return f"warning: no {PAGE_FILE}: {type(error).__name__}: {error}; the model and the results are whole"
    write_whole(staging / PAGE_FILE, content)
    return f"report: {shown(inside(setup.job.location, PAGE_FILE))}; open it in a browser"


def _page(
    staging: Path,
    setup: Setup,
    choice: Choice,
    verdict: list[str],
    before: Evaluation,
    splits: Mapping[str, AskedQuestions],
    documents: Documents,
    train_metrics: Mapping[str, Any],
) -> RunPage:
    state = json.loads((staging / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
    return RunPage(
        name=Path(setup.job.output_dir).name,
        verdict=verdict,
        splits=[
            SplitPart.of(name, asked, documents, *(of.splits[name].positions for of in (before, choice.evaluation)))
            for name, asked in splits.items()
        ],
        facts=_facts(setup, choice, state, train_metrics),
        data=setup.about_data,
        candidates=[(str(one.candidate), one.value, one.against or one.unproven) for one in choice.scores],
        metric=choice.metric,
        history=state["log_history"],
        chosen_step=choice.candidate.step,
    )


def _facts(setup: Setup, choice: Choice, state: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, str]:
    job: Job = setup.job
    waits = [entry["data_wait_share"] for entry in state["log_history"] if "data_wait_share" in entry]
    facts = {
        "pretrained model": str(job.settings.model_name_or_path),
        "model of this run": str(choice.candidate),
        "training pairs": f"{setup.num_rows:,}",
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
