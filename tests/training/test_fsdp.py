import pytest

from rqa_ray.errors import InputError
from rqa_ray.training.fsdp import check_num_workers
from rqa_ray.training.job import parse_job

MINIMAL = ["--demo_size", "8", "--model_name_or_path", "model", "--output_dir", "out"]


@pytest.mark.parametrize("words", ["--fsdp", "--fsdp true", "--fsdp full_shard", "--fsdp=True --optim sgd"])
def test_weights_are_shared_where_the_flag_is_on(words):
    assert parse_job([*MINIMAL, *words.split()]).training["fsdp"]


def test_a_config_may_say_so_too():
    config = {"demo_size": 8, "model_name_or_path": "model", "output_dir": "out"}
    assert parse_job(config | {"fsdp": True}).training["fsdp"]
    assert parse_job(config | {"fsdp": False}) == parse_job(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--fp16", "--fsdp and --fp16: the scale of the loss is not shared; choose --bf16"),
        ("--torch_compile", "--fsdp and --torch_compile: they do not work together; leave out one of them"),
        ("--async_eval", "--fsdp and --async_eval: it would load the whole model on one device"),
        ("--optim adafactor", "--optim adafactor: --fsdp works with adamw_torch, adamw_torch_fused and sgd"),
        ("--fsdp hybrid_shard", "--fsdp hybrid_shard: has to be true, false or full_shard"),
        ("--fsdp_config fsdp.json", "--fsdp_config fsdp.json: there is nothing to configure"),
    ],
)
def test_what_does_not_go_together_with_shared_weights_is_refused(words, message):
    with pytest.raises(InputError, match=f"^{message}"):
        parse_job([*MINIMAL, "--fsdp", *words.split()])


def test_a_single_worker_has_nobody_to_share_with():
    with pytest.raises(InputError, match="^--fsdp: .*; give --num_workers 2 or more$"):
        check_num_workers({"fsdp": "true"}, 1)
    check_num_workers({"fsdp": "true"}, 2)
    check_num_workers({}, 1)
