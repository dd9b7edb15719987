"""A plan is described in one line, and is the same after saving and loading."""

from rqa_ray.retriever.forward_plan import ForwardPlan


def test_a_plan_is_said_in_one_line() -> None:
    said = ForwardPlan(2000, packed=True).describe()
    assert said == "at most 2,000 tokens a forward pass, no padding; without gradient caching"


def test_a_saved_plan_is_the_same_again(tmp_path) -> None:
    plan = ForwardPlan(77, packed=True, gradient_cache=True, world_size=3)
    plan.save(tmp_path)
    assert ForwardPlan.load(tmp_path) == plan
