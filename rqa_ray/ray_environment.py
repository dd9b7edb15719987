"""What Ray's processes read from the environment, set when this package is imported: before Ray is.

The workers of a private local cluster inherit it.
"""

import os

# Quiet: one progress line is all that a run prints. Fair: on a machine that others use too, a waiting thread must
# sleep, not spin (a step took 2.7 times as long), and workers must not be nicer than everybody else. Fast: torch asks
# the kernel for huge pages, since a step's activations are given back and faulted in again at every step (a fifth of
# its CPU time in small pages); and what idle processes of Ray wake up for is left out, each some hundred times a
# second beside the workers on all cores.
for _name, _value in {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # at the default of 2 s each report takes 2 s
    "RAY_worker_niceness": "0",
    "RAY_event_stats": "0",
    "RAY_num_workers_soft_limit": "0",  # those that have read the data end after
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    "OMP_WAIT_POLICY": "PASSIVE",
    "THP_MEM_ALLOC_ENABLE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Of Ray Tune: it prints a box even when told to print nothing; `tuning/tune.py` handles its signals; trials
    # write their own TensorBoard files, trials.csv has the rest; what a kill may lose of its state (seconds).
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

OF_ACCELERATE = "ACCELERATE_"  # begins the names by which transformers and accelerate take settings from outside


def forget_accelerate() -> None:
    """Lets a training worker read its arguments alone: ACCELERATE_MIXED_PRECISION=bf16 would train in bf16 unasked."""
    for name in [name for name in os.environ if name.startswith(OF_ACCELERATE)]:
        del os.environ[name]
