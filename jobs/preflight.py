"""Says in seconds whether a training job could run: takes the words of jobs/train.py, trains nothing; see its -h."""

import shlex
import sys

from rqa_ray.command_line import user_errors
from rqa_ray.training.job import parse_job


def main() -> None:
    with user_errors():
        job = parse_job(sys.argv[1:])
        from rqa_ray.data.counts import estimate
        from rqa_ray.training.batch_sizes import micro_batch_size
        from rqa_ray.training.output_folder import with_local_output
        from rqa_ray.training.setup import check

        checked = check(with_local_output(job))
        counts = estimate(checked.files["train"])
        _, lines = micro_batch_size(checked.job, checked.plan.num_workers, counts.num_rows, bool(counts.num_negatives))
        print(f"about {counts.num_rows:,} training rows, one for each question and gold passage")
        print("\n".join(lines))
        print(f"all checks passed; next:\n  python jobs/train.py {shlex.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
