"""A plan is described in one line, and is the same after saving and loading."""

from rqa_ray.retriever.forward_plan import ForwardPlan


def test_a_plan_is_said_in_one_line() -> None:
    said = ForwardPlan(2000, packed=True).describe()
    assert said == "at most 2,000 tokens a forward pass, no padding; without gradient caching"
    said = ForwardPlan(500, gradient_cache=0.3).describe()
    assert said.endswith(", padded to their longest text; with gradient caching of 30% of the tokens")
    assert ForwardPlan(500, gradient_cache=1.0).describe().endswith("; with gradient caching")


def test_a_saved_plan_is_the_same_again(tmp_path) -> None:
    plan = ForwardPlan(77, packed=True, gradient_cache=0.4, world_size=3)
    plan.save(tmp_path)
    assert ForwardPlan.load(tmp_path) == plan
