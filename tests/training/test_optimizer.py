"""An optimizer or a schedule that transformers cannot build is one line before a run."""

import pytest

from rqa_ray.errors import InputError
from rqa_ray.training.optimizer import check_optimizer

RATE = {"learning_rate": 1e-5}


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr_scheduler_type cosine_with_min_lr: .* min_lr"),
        ({"lr_scheduler_kwargs": '{"bogus": 1}'}, "--lr_scheduler_type cosine: .* argument 'bogus'"),
        ({"lr_scheduler_kwargs": {"num_cycles": "many"}}, "--lr_scheduler_type cosine: .* 'many'"),
        ({"lr_scheduler_kwargs": "{bogus"}, "--lr_scheduler_kwargs {bogus: not JSON"),
        ({"lr_scheduler_kwargs": "[1]"}, r"--lr_scheduler_kwargs \[1\]: has to be an object of names and values"),
        ({"optim": "lomo"}, "--optim lomo: .* need to install"),
        ({"optim_args": "x"}, "--optim adamw_torch_fused: "),
    ],
)
def test_arguments_from_which_none_can_be_built_are_one_line(training, said):
    with pytest.raises(InputError, match=f"^{said}") as error:
        check_optimizer(RATE | training)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": "0.1"}'},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_type": "greedy"},
        {"lr_scheduler_type": "inverse_sqrt"},
        {"optim": "adafactor"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "galore_adamw", "optim_target_modules": "all-linear"},  # only the model has these
    ],
)
def test_what_transformers_can_build_is_accepted(training):
    check_optimizer(RATE | training)
