"""Makes report.html, the page about a finished run, from what the finish has measured and the state of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rqa_ray.corpus.mined_files import SUSPECTS_PER_QUESTION
from rqa_ray.data.share import PairsInShare
from rqa_ray.errors import InputError
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.predictions import Documents
from rqa_ray.reports.report_page import Phase, ReportPage
from rqa_ray.reports.split_part import SplitPart
from rqa_ray.reports.suspects_page import PAGE_FILE, SuspectsPart
from rqa_ray.texts import short
from rqa_ray.training.batch_sizes import batch_of, describe_pairs
from rqa_ray.training.checkpoint_files import StepNote
from rqa_ray.training.finish import Choice
from rqa_ray.training.job import Job
from rqa_ray.training.setup import Setup
from rqa_ray.training.spent import Spent
from rqa_ray.training.trainer import TRAINER_STATE_FILE

PHASES = {  # of `Spent`, in the order of a run
    "reading": "reading and tokenizing",
    "starting": "starting the workers",
    "waiting": "steps: waiting for data",
    "steps": "steps: computing",
    "mining": "mining",
    "evaluating": "evaluations",
    "saving": "saving checkpoints",
    "finishing": "choosing the final model",
}
ABOUT_TIME = "Reading and starting are those of the last start; the other times are those of the whole run."


def page_of_run(
    folder: Path,
    setup: Setup,
    job: Job,
    choice: Choice,
    verdict: list[str],
    compared: Mapping[str, Comparison],
    documents: Documents,
    note: StepNote,
) -> ReportPage:
    """Returns the page of a run, whose `trainer_state.json` is in a folder; `note` is that of its last checkpoint.

    `job` is the job of the run; in a search, this is the winner's job, and the job of `setup` is that of the search.
    """
    state = json.loads((folder / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
    try:
        suspects, problems = SuspectsPart.of(folder, PAGE_FILE) or _suspects(setup, job.output_dir), []
    except InputError as error:  # a person may have edited the file
        suspects, problems = None, [f"suspects are not shown: {error}"]
    return ReportPage(
        name=Path(job.output_dir).name,
        verdict=verdict,
        splits=[SplitPart.of_run(name, of, documents, len(compared)) for name, of in compared.items()],
        facts=_facts(setup, job, choice, state, note),
        data=setup.about_data + _leaks(note) + problems,
        sources=setup.by_source.counts(job.share),
        candidates=[(str(one.candidate), one.value, choice.why_not(one)) for one in choice.scores],
        metric=choice.metric,
        history=state["log_history"],
        chosen_step=choice.candidate.step,
        phases=_phases(note.spent),
        about_time=[ABOUT_TIME],
        suspects=suspects,
    )


def _facts(setup: Setup, job: Job, choice: Choice, state: Mapping[str, Any], note: StepNote) -> dict[str, str]:
    waits = [entry["data_wait_share"] for entry in state["log_history"] if "data_wait_share" in entry]
    sources = setup.shared.source_keys  # None if the files are streamed; then all runs have the pairs of the setup
    pairs = setup.num_rows if sources is None else PairsInShare.of(job.share, sources).num_pairs
    steps, tokens = state["global_step"], note.spent.tokens
    in_step = batch_of(job, pairs) * job.accumulation_steps
    facts = {
        "pretrained model": str(job.settings.model_name_or_path),
        "model of this run": str(choice.candidate),
        "training pairs": f"{pairs:,}",
        "steps": f"{steps:,}",
        "pairs of a step": f"{in_step:,}",
        "pairs seen": describe_pairs(steps * in_step, pairs),
        "batches": f"{steps * job.accumulation_steps:,}",
    }
    if tokens:
        rate = tokens / max(note.spent.waiting + note.spent.steps, 1e-9)
        facts["tokens of all batches"] = f"{tokens:,}; {tokens / max(steps, 1):,.0f} a step, {rate:,.0f} a second"
    cut = [f"{name} {share:.1%}" for name, share in setup.cut.items() if share]
    facts |= {
        "texts longer than max_seq_length, cut": ", ".join(cut) or "none",
        "peak learning rate": short(float(job.training["learning_rate"])),
        "workers": setup.workers.describe(),
    }
    if waits:
        facts["share of the time that steps waited for data"] = f"{sum(waits) / len(waits):.1%}"
    if note.num_suspects:
        facts["suspects that mining left out"] = (
            f"{note.num_suspects:,}, at most {SUSPECTS_PER_QUESTION} of a question are written"
        )
    return facts


def _leaks(note: StepNote) -> list[str]:
    """Returns a line about the eval and test questions with a gold among the mined hard negatives, if any."""
    leaks = ", ".join(f"{split} {number:,}" for split, number in note.leaks.items())
    return [f"note: questions with a gold among the mined hard negatives: {leaks}"] if leaks else []


def _phases(spent: Spent) -> list[Phase]:
    seconds = {name: getattr(spent, name) for name in PHASES}
    total = sum(seconds.values())
    return [Phase(PHASES[name], value, value / total) for name, value in seconds.items() if value > 0]


def _suspects(setup: Setup, output_dir: str) -> SuspectsPart | None:
    """Returns the suspects that jobs/mine.py has written beside the training files, if there are any."""
    for folder in dict.fromkeys(Path(file).parent for file in setup.train_files if "://" not in file):
        found = SuspectsPart.of(folder, os.path.relpath(folder / PAGE_FILE, output_dir))
        if found:
            return found
    return None
