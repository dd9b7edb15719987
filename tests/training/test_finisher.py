"""The driver's part of a finish: it asks the workers only for what lacks, and writes the model that was chosen."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import read_json
from rqa_ray.retriever.adapters import add_adapters
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.settings import LoraSettings
from rqa_ray.training import finisher as module
from rqa_ray.training.candidate import BASE, Candidate
from rqa_ray.training.checkpoint_files import StepNote, save_evaluations, save_trained
from rqa_ray.training.checkpoints import MANIFEST_FILE, read_checkpoint, write_manifest
from rqa_ray.training.finish import EvalQuestions
from rqa_ray.training.finish_results import FinishResults
from rqa_ray.training.finisher import Finisher
from rqa_ray.training.job import parse_job
from rqa_ray.training.spec import WorkerSpec
from tests.training.invariance import random_bert
from tests.training.test_finish import NDCG, evaluator_of, finished, store_steps


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[Path, list]:
    """A folder with a model and two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("stored")
    told = store_steps(folder)
    return folder, [read_checkpoint(location) for location in told.checkpoints.values()]


def finisher_of(stored, kind: str, place: Path, splits: tuple[str, ...] = ("eval", "corpus")) -> Finisher:
    folder, whole = stored
    words = ["--model_name_or_path", "m", "--output_dir", "out", "--demo_size", "9", "--metric_for_best_model", NDCG]
    job = parse_job([*words, "--finish", kind, "--save_total_limit", "2"])
    setup = SimpleNamespace(blocks=dict.fromkeys(splits), workers=None)
    setup.worker_spec = lambda **more: WorkerSpec(job.settings, job.training, model, {}, **more)
    model = ModelSpec(random_bert(str(folder)), read_settings(random_bert(str(folder))))
    evaluator, _ = evaluator_of(str(folder))
    asked = evaluator.asked | ({"test": evaluator.asked["eval"]} if "test" in splits else {})
    return Finisher(setup, job, model, whole, str(place), EvalQuestions.of(evaluator), asked)


def test_evaluations_beside_training_that_a_crash_has_cut_off_are_made_before_the_choice(
    stored, tmp_path, monkeypatch
) -> None:
    shutil.copytree(stored[0], tmp_path / "run")
    of_8, place = tmp_path / "run/checkpoint-8", tmp_path / "place"
    save_evaluations(of_8, Evaluation(), stored[1][1].before())
    asked: list[WorkerSpec] = []

    def fit(loop, job, workers, spec, place, run, saves_on_stop) -> None:
        asked.append(spec)
        FinishResults(spec.finish)[Candidate((8,))] = stored[1][1].evaluation()

    def finisher() -> tuple[Finisher, list]:
        (of_8 / MANIFEST_FILE).unlink()
        write_manifest(of_8, 8)
        whole = [read_checkpoint(str(tmp_path / f"run/checkpoint-{step}")) for step in (4, 8)]
        found = finisher_of((tmp_path / "run", whole), "best", place)
        return found, found.make_up_evaluations()

    monkeypatch.setattr(module, "fit", fit)
    StepNote(8).save(of_8)  # such as after a stop or a notice that a node goes away: nothing was to be evaluated
    untouched, made_up = finisher()
    assert not made_up and list(untouched.told.checkpoints) == [4] and not asked
    StepNote(8, evaluated_beside=True).save(of_8)
    made, made_up = finisher()
    assert [spec.finish.checkpoints for spec in asked] == [{8: str(of_8)}] and asked[0].settings.finish == "none"
    assert made_up == [(8, stored[1][1].metrics)]
    monkeypatch.setattr(module, "fit", no_workers)
    assert [score.candidate for score in made.choose().scores] == [BASE, Candidate((4,)), Candidate((8,))]
    again, made_up = finisher()
    assert not made_up and set(again.told.checkpoints) == {4, 8}


def test_workers_that_bring_no_evaluation_are_asked_three_times(stored, tmp_path, monkeypatch, capsys) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "fit", lambda *given, **options: asked.append(given[-1]))
    with pytest.raises(SystemExit) as end:
        finisher_of(stored, "merge", tmp_path / "place").choose()
    assert end.value.code == 1 and len(set(asked)) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error: some candidates have no evaluation in {tmp_path}/place after 3 tries\ngo on in")


def no_workers(*args, **options) -> None:
    raise AssertionError("workers were started")


def test_a_choice_among_evaluated_steps_needs_no_workers(stored, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "fit", no_workers)
    for kind in ("none", "best"):
        choice = finisher_of(stored, kind, tmp_path).choose()
        assert [score.candidate for score in choice.scores] == [BASE, Candidate((4,)), Candidate((8,))]


def test_the_workers_are_asked_once_for_the_candidates_of_a_merge(stored, tmp_path, monkeypatch) -> None:
    asked: list[WorkerSpec] = []

    def fit(loop, job, workers, spec, place, run, saves_on_stop) -> None:
        asked.append(spec)
        finished(str(stored[0]), spec.finish.place, spec.finish)

    monkeypatch.setattr(module, "fit", fit)
    choice = finisher_of(stored, "merge", tmp_path / "place").choose()
    assert len(asked) == 1 and len(choice.scores) == 8
    assert asked[0].settings.finish == "merge" and list(asked[0].finish.checkpoints) in ([4, 8], [8, 4])
    monkeypatch.setattr(module, "fit", no_workers)
    assert finisher_of(stored, "merge", tmp_path / "place").choose().scores == choice.scores


def test_the_workers_are_asked_for_the_test_questions_of_the_chosen_step_and_of_the_base(
    stored, tmp_path, monkeypatch
) -> None:
    tested: list[Candidate] = []

    def fit(loop, job, workers, spec, place, run, saves_on_stop) -> None:
        results = FinishResults(spec.finish)
        # one call of the workers brings one of them here
        chosen = finisher.finish.choose(spec.finish.checkpoints, results.get).candidate
        tested.append(BASE if chosen in tested else chosen)
        found = results.get(tested[-1]).splits["eval"]
        results[tested[-1]] = Evaluation({"eval": found, "test": found})

    monkeypatch.setattr(module, "fit", fit)
    finisher = finisher_of(stored, "none", tmp_path, ("eval", "test", "corpus"))
    choice = finisher.choose()
    assert tested == list(dict.fromkeys([choice.candidate, BASE]))
    assert set(choice.evaluation.splits) == set(finisher.before().splits) == {"eval", "test"}
    assert finisher.choose().candidate == choice.candidate and len(tested) <= 2


def test_candidates_that_were_evaluated_on_other_questions_are_evaluated_again(stored, tmp_path, monkeypatch) -> None:
    finisher = finisher_of(stored, "best", tmp_path)
    finisher.results.asked = {"eval": "other questions"}
    evaluated: list[Candidate] = []

    def fit(loop, job, workers, spec, place, run, saves_on_stop) -> None:
        evaluated.extend(one for one in (BASE, Candidate((4,)), Candidate((8,))) if not finisher.results.get(one))
        for one in evaluated:
            found = FinishResults(spec.finish).get(one).splits["eval"]
            finisher.results[one] = Evaluation({"eval": replace(found, asked="other questions")})

    monkeypatch.setattr(module, "fit", fit)
    assert finisher.choose().evaluation.splits["eval"].asked == "other questions"
    assert evaluated == [BASE, Candidate((4,)), Candidate((8,))]


@pytest.mark.parametrize("candidate", [BASE, Candidate((4,)), Candidate((4, 8), 0.5)], ids=str)
def test_the_written_model_has_the_weights_of_the_candidate(stored, tmp_path, candidate) -> None:
    finisher = finisher_of(stored, "merge", tmp_path / "place")
    finisher.model = replace(finisher.model, prompts=(("nq", "Find: "),))
    finisher.write_model(candidate, tmp_path / "out")
    folders = [finisher.model.folder, *(f"{stored[0]}/checkpoint-{step}/model" for step in (4, 8))]
    base, four, eight = (load_file(Path(folder) / "model.safetensors") for folder in folders)
    for name, weights in load_file(tmp_path / "out" / "model.safetensors").items():
        mixed = 0.25 * four[name] + 0.25 * eight[name] + 0.5 * base[name]
        expected = mixed if candidate.share < 1 else four[name] if candidate.steps else base[name]
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6 if candidate.share < 1 else 0)
    assert (tmp_path / "out" / "modules.json").exists()
    prompts = read_json(tmp_path / "out" / "config_sentence_transformers.json")["prompts"]
    assert prompts == {"query": "", "document": "", "nq": "Find: "}


@pytest.mark.parametrize("candidate", [Candidate((4,)), Candidate((4,), 0.7), Candidate((4, 8), 0.5)], ids=str)
def test_the_written_adapter_makes_the_written_model_from_the_pretrained_one(tmp_path, candidate) -> None:
    peft = pytest.importorskip("peft", reason='needs peft: pip install -e ".[lora]"')
    model, whole = random_bert(str(tmp_path)), []
    for step in (4, 8):
        encoder = load_encoder(model, read_settings(model))
        add_adapters(encoder, LoraSettings(lora_r=2), model, seed=step)
        for value in encoder.parameters():
            torch.nn.init.normal_(value, std=0.1) if value.requires_grad else None
        checkpoint = tmp_path / f"checkpoint-{step}"
        save_trained(checkpoint, encoder)
        save_evaluations(checkpoint, Evaluation(), Evaluation())
        StepNote(step).save(checkpoint)
        write_manifest(checkpoint, step)
        whole.append(read_checkpoint(str(checkpoint)))
    finisher = finisher_of((tmp_path, whole), "merge", tmp_path / "place")
    finisher.results.checkpoints = {one.step: one for one in whole}
    finisher.write_model(candidate, tmp_path / "out")
    assert (
        finisher.write_adapter(candidate, tmp_path / "out" / "adapter") == "adapter in adapter/ of the output folder"
    )
    opened = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(model), tmp_path / "out" / "adapter")
    found, written = opened.merge_and_unload().state_dict(), load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == written.keys()
    for name, weights in written.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=1e-6)
    assert (
        "no adapter is saved" in finisher.write_adapter(BASE, tmp_path / "none") and not (tmp_path / "none").exists()
    )
