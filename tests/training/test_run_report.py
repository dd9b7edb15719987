"""A report that cannot be made costs the report only."""

from types import SimpleNamespace

from rqa_ray.training.run_report import write_report
from rqa_ray.training.trainer import TRAINER_STATE_FILE


def test_a_report_that_cannot_be_made_is_a_warning_and_leaves_no_file(tmp_path):
    (tmp_path / TRAINER_STATE_FILE).write_text("{}")
    setup = SimpleNamespace(job=SimpleNamespace(output_dir="out", location="out"))
    said = write_report(tmp_path, setup, None, [], None, {}, None, {})
    assert said.startswith("warning: no report.html: ") and said.endswith("; the model and the results are whole")
    assert [path.name for path in tmp_path.iterdir()] == [TRAINER_STATE_FILE]
