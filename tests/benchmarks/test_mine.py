"""The table of the benchmark of mining, and the clock of the peer's encoder."""

import time

from rqa_ray.benchmarks import mine


class Model:
    device = "cpu"

    def encode_query(self, texts: list[str]) -> list[int]:
        time.sleep(0.01)
        return [len(text) for text in texts]


def test_only_encoding_counts_as_encoding() -> None:
    model = mine._Timed(Model())
    assert model.device == "cpu" and model.seconds == 0
    assert model.encode_query(["abc"]) == [3] and 0.01 <= model.seconds < 1


def test_a_row_has_seconds_share_ratio_and_memory() -> None:
    figures = mine._figures(questions=100, seconds=50.0, encoding=45.0, peak=2_500_000_000)
    table = mine.table({"own": figures | {"times_slower": 1.0}})
    assert table.splitlines()[-1] == "| own | 50 | 90% | 1.00 | 2.50 |"
