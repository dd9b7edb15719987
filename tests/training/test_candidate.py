"""The weights of candidates: sums, means and mixtures of the weights of steps."""

import pytest
import torch

from rqa_ray.training.candidate import BASE, Candidate, Weights, mix


def test_mixing_is_a_sum_in_fp32_in_the_type_of_the_tensors_and_keeps_whole_numbers_of_the_first() -> None:
    tuned = {"a": torch.tensor([1.0, 2.0]), "half": torch.tensor([3.0]).half(), "ids": torch.tensor([1, 2])}
    base = {"a": torch.tensor([0.0, 4.0]), "half": torch.tensor([1.0]).half(), "ids": torch.tensor([7, 7])}
    mixed = mix([(0.75, tuned), (0.25, base)])
    assert mixed["a"].tolist() == [0.75, 2.5] and mixed["ids"].tolist() == [1, 2]
    assert mixed["half"].dtype == torch.float16 and mixed["half"].item() == 2.5
    assert base["a"].tolist() == [0.0, 4.0] and tuned["a"].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="only models with the same tensors"):
        mix([(0.5, tuned), (0.5, {"a": torch.tensor([1.0])})])


def test_the_weights_of_a_candidate_are_its_share_of_the_mean_of_its_steps() -> None:
    of_step = {step: {"w": torch.tensor([float(step)])} for step in (0, 2, 4, 8)}
    weights = Weights(of_step[0], of_step.__getitem__)
    for candidate, expected in (
        (BASE, 0.0),
        (Candidate((4,)), 4.0),
        (Candidate((2, 4)), 3.0),
        (Candidate((2, 4), 0.5), 1.5),
        (Candidate((8,), 0.25), 2.0),
    ):
        assert weights.of(candidate)["w"].item() == expected
