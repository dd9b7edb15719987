"""Splits share no group, are the same each time, and leave a group that is too large to train."""

import pytest

from rqa_ray.data.splits import split_groups

GROUPS = {f"file {number}": [f"{number}.{item}" for item in range(1 + number % 3)] for number in range(200)}


def test_whole_groups_are_dealt_out_and_eval_and_test_have_their_share():
    splits = split_groups(GROUPS, seed=0)
    total = sum(map(len, GROUPS.values()))
    assert sorted(item for chosen in splits.values() for item in chosen) == sorted(sum(GROUPS.values(), []))
    for name in ("eval", "test"):
        assert 0.12 <= len(splits[name]) / total < 0.13
    for items in GROUPS.values():
        assert sum(bool(set(items) & set(chosen)) for chosen in splits.values()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_split_depends_on_names_and_seed_alone(seed):
    again = dict(reversed(GROUPS.items()))
    assert split_groups(again, seed) == split_groups(GROUPS, seed) != split_groups(GROUPS, seed + 1)


def test_a_group_that_would_be_most_of_a_split_is_for_training():
    large = [f"large {number}" for number in range(20)]
    for seed in range(5):
        assert set(large) <= set(split_groups(GROUPS | {"large": large}, seed)["train"])
