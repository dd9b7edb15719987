"""Sets what Ray's processes read from the environment when this package is imported, before Ray is imported.

The workers of a private local cluster inherit these settings.
"""

import os

# Quiet: a run prints nothing but one progress line. Fair: waiting threads sleep and do not spin, because a step took
# 2.7 times as long on a machine that others use too; workers have the same priority as other processes. Fast: torch
# asks the kernel for huge pages, because small pages took a fifth of a step's CPU time for the memory of activations;
# idle processes of Ray skip what they can, because each wakes up a hundred times a second on the cores of the workers.
for _name, _value in {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # with the default of 2 s, each report takes 2 s
    # how long a failed run waits for a rank that may hang (default 30 s); jobs/runtime_env.yaml says so on a cluster
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "RAY_worker_niceness": "0",
    "RAY_event_stats": "0",
    "RAY_num_workers_soft_limit": "0",  # processes that have read the data end
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    "OMP_WAIT_POLICY": "PASSIVE",
    "THP_MEM_ALLOC_ENABLE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray Tune prints a box even if it is told to print nothing. `tuning/tune.py` handles signals itself. Trials write
    # their own TensorBoard files, and trials.csv has the rest. A kill may lose 2 s of Tune's state.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

OF_ACCELERATE = "ACCELERATE_"  # names of environment variables with settings for accelerate begin so


def forget_accelerate() -> None:
    """Removes accelerate's environment variables in a training worker, so that only its arguments count.

    ACCELERATE_MIXED_PRECISION=bf16 would make it train in bf16.
    """
    for name in [name for name in os.environ if name.startswith(OF_ACCELERATE)]:
        del os.environ[name]
