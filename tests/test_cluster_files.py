"""The files for clusters: cluster.yaml, jobs/runtime_env.yaml, jobs/rayjob.yaml, and what a job uploads."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]


def load(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


def environment(kind: str) -> dict[str, str]:
    """Returns the environment that cluster.yaml gives to the processes on a head or a worker."""
    docker = load("cluster.yaml")["docker"]
    options = docker["run_options"] + docker.get(f"{kind}_run_options", [])
    return dict(option.removeprefix("--env ").split("=", 1) for option in options if option.startswith("--env "))


def test_cluster_yaml_passes_rays_own_check():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("cluster.yaml"))
    validate_config(config)
    assert config["available_node_types"]["head"]["max_workers"] == 0
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "max_worker": 8})


def test_token_authentication_is_on_for_every_node_and_the_dashboard_on_loopback():
    config = load("cluster.yaml")
    assert environment("head")["RAY_AUTH_MODE"] == environment("worker")["RAY_AUTH_MODE"] == "token"
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    [start] = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert load("jobs/rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_every_command_that_a_document_has_for_a_cluster_uses_the_token():
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "jobs/README.md").read_text(), re.MULTILINE | re.DOTALL)
    blocks += [(ROOT / "cluster.yaml").read_text().split("cluster_name:")[0]]
    started = [block for block in blocks if re.search(r"ray (start|up)", block)]
    assert len(started) == 3
    assert all("RAY_AUTH_MODE=token" in block and "get-auth-token --generate" in block for block in started)
    assert all("RAY_AUTH_MODE=token" in block for block in blocks if "ray job submit" in block)


def test_the_runtime_env_is_one_that_ray_takes_and_gives_a_stopped_job_time_to_save():
    from ray.runtime_env import RuntimeEnv

    content = load("jobs/runtime_env.yaml")
    assert RuntimeEnv(**content)["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "30"
    in_rayjob = yaml.safe_load(load("jobs/rayjob.yaml")["spec"]["runtimeEnvYAML"])
    RuntimeEnv(env_vars=in_rayjob["env_vars"])  # its working_dir is a folder of the image
    assert in_rayjob["env_vars"] == content["env_vars"]


def closed(schema):
    """Returns the schema with every object limited to the names that it lists."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(part) for key, part in schema.items()}
    return {**parts, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else parts


def rayjob_mistakes(rayjob: dict) -> list[str]:
    schema = load("tests/rayjob_schema.yaml")
    schema["properties"]["spec"] = {"$ref": f"#/$defs/{rayjob['kind']}"}
    validator = jsonschema.Draft202012Validator(closed(schema))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(rayjob)]


def test_rayjob_yaml_says_only_what_kuberay_knows():
    assert rayjob_mistakes(load("jobs/rayjob.yaml")) == []


def test_the_variants_that_rayjob_yaml_tells_of_are_known_to_kuberay():
    text = (ROOT / "jobs/rayjob.yaml").read_text()
    [options] = [line for line in text.splitlines() if line.startswith("    # gcsFaultToleranceOptions: ")]
    rayjob = yaml.safe_load(text.replace(options, options.replace("# ", "", 1)))
    assert rayjob["spec"]["rayClusterSpec"]["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    nightly = {**rayjob, "kind": "RayCronJob", "spec": {"schedule": "0 3 * * *", "jobTemplate": rayjob["spec"]}}
    assert rayjob_mistakes(rayjob) == rayjob_mistakes(nightly) == []
    assert len(rayjob_mistakes({**nightly, "spec": rayjob["spec"]})) > 1


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("spec", "backofLimit", 3),
        ("spec", "submissionMode", "K8sJob"),
        ("spec rayClusterSpec authOptions", "mode", "on"),
        ("spec rayClusterSpec workerGroupSpecs 0", "maxWorkers", 8),
        ("spec rayClusterSpec headGroupSpec rayStartParams", "num-cpus", 0),
        ("spec rayClusterSpec workerGroupSpecs 0 template spec", "toleration", []),
        ("spec rayClusterSpec workerGroupSpecs 0 template spec containers 0 env 0", "value", 0),
    ],
)
def test_a_mistake_in_rayjob_yaml_is_found_at_any_depth(place, name, value):
    rayjob = load("jobs/rayjob.yaml")
    target = rayjob
    for step in place.split():
        target = target[int(step)] if step.isdigit() else target[step]
    target[name] = value
    assert len(rayjob_mistakes(rayjob)) == 1


def test_rays_autoscaler_reads_the_gpu_workers_of_rayjob_yaml():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = load("jobs/rayjob.yaml")["spec"]["rayClusterSpec"]
    types = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "job", "namespace": "default"}, "spec": spec})
    types = types["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    worker = types["gpu-spot"]
    assert (worker["resources"]["GPU"], worker["min_workers"], worker["max_workers"]) == (1, 0, 8)


def test_a_job_uploads_the_package_and_its_scripts_in_less_than_1500_kilobytes(tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert package.stat().st_size < 1_500_000
    names = zipfile.ZipFile(package).namelist()
    assert {"jobs/train.py", "jobs/tune.py", "jobs/demo.json", "rqa_ray/training/train.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", ".git/", "output/", "rqa_ray/benchmarks/"))]


DRIVER = """
import json, sys, time
import psutil, ray
from ray.util.placement_group import placement_group, remove_placement_group

def wait(condition, seconds):
    start = time.time()
    while not condition() and time.time() - start < seconds:
        time.sleep(0.1)
    return time.time() - start

def workers():
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]

ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)
seen = {"before": len(workers()), "head": ray.nodes()[0]["Resources"].get("CPU", 0)}
group = placement_group([{"CPU": 8, "GPU": 1}] * 2, strategy="STRICT_SPREAD")
seen["placed"] = group.wait(60)
seen["during"] = [[node["Resources"]["CPU"], node["Resources"]["GPU"]] for node in workers()]
remove_placement_group(group)
lost = workers()[0]
sockets = f"--raylet_socket_name={lost['RayletSocketName']}"
[raylet] = [one for one in psutil.process_iter(["cmdline"]) if sockets in (one.info["cmdline"] or ())]
raylet.kill()
seen["noticed_s"] = wait(lambda: lost["NodeID"] not in {node["NodeID"] for node in workers()}, 30)
wait(lambda: not workers(), 60)
seen["after"] = len(workers())
open(sys.argv[2], "w").write(json.dumps(seen))  # the driver prints what it hears of lost nodes
"""


@pytest.fixture
def autoscaled(tmp_path):
    """Starts cluster.yaml's node types and environment as processes of this machine.

    Returns the address and drivers' variables.
    """
    from ray._private.services import get_node_ip_address
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(load("cluster.yaml"))  # as `ray up` gives it to the head
    types = {
        FAKE_HEAD_NODE_TYPE if name == "head" else name: kind for name, kind in config["available_node_types"].items()
    }
    address = f"{get_node_ip_address()}:{free_port()}"
    provider = {
        # By its module, since the wheel lacks the defaults of the type `fake_multinode`.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    fake = {
        **config,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "idle_timeout_minutes": 0.1,
        "docker": {},
        "file_mounts": {},
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(fake))
    (tmp_path / "token").write_text("a-token-of-this-test-alone-0123456789")
    auth = {"RAY_AUTH_MODE": environment("head")["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    ray_up = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}  # `ray up` sets these too
    ray_up["RAY_NODE_TYPE_NAME"] = FAKE_HEAD_NODE_TYPE
    faking = {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    faking["AUTOSCALER_UPDATE_INTERVAL_S"] = "1"
    folder = Path("/tmp") / f"rc{os.getpid()}"  # short, for the sockets
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [
        f"{Path(sys.executable).parent}/ray",
        "start",
        "--head",
        "--block",
        f"--temp-dir={folder}",
        "--object-store-memory=100000000",
    ]
    command += [f"--port={address.split(':')[1]}", f"--autoscaling-config={tmp_path / 'cluster.yaml'}"]
    command += [f"--num-cpus={types[FAKE_HEAD_NODE_TYPE]['resources']['CPU']}", f"--dashboard-port={free_port()}"]
    with open(tmp_path / "log", "w") as log:
        head = subprocess.Popen(
            command,
            env={
                **os.environ,
                **environment("head"),
                **auth,
                **ray_up,
                **faking,
                "RAY_TMPDIR": str(folder),
                "PATH": path,
            },
            stdout=log,
            stderr=log,
            start_new_session=True,  # all its processes, to end them and no others
        )
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (tmp_path / "log").read_text():
            assert head.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield address, {**os.environ, **auth}
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def test_cluster_yamls_workers_come_on_demand_are_missed_when_lost_and_go_when_idle(autoscaled, tmp_path):
    address, variables = autoscaled
    command = [sys.executable, "-c", DRIVER, address, str(tmp_path / "seen.json")]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    print(seen)
    assert (seen["before"], seen["head"], seen["placed"], seen["after"]) == (0, 0, True, 0)
    assert seen["during"] == [[8, 1], [8, 1]]
    assert seen["noticed_s"] < 12  # a new node is first checked after 5 s; by default 13 and more

    stranger = {**variables, "RAY_AUTH_TOKEN": "of-another-cluster"}
    asking = f"from ray._raylet import GcsClient; GcsClient({address!r}).internal_kv_keys(b'', None)"
    run = subprocess.run([sys.executable, "-c", asking], env=stranger, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0 and "AuthenticationError" in run.stderr


@pytest.mark.slow
def test_a_run_is_planned_for_nodes_that_are_still_to_come_and_gets_them(autoscaled, files, tiny_model, tmp_path):
    address, variables = autoscaled
    named = {**files, "model_name_or_path": tiny_model, "output_dir": str(tmp_path / "out"), "max_steps": "4"}
    words = [word for name, value in named.items() for word in (f"--{name}", value)]

    def train(num_workers: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "jobs/train.py", *words, "--use_cpu", "true", "--num_workers", num_workers]
        own = {**variables, "RAY_ADDRESS": address}
        return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=240)

    refused = train("1000")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "1000" in refused.stderr, refused.stderr
    ended = train("2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "out/model.safetensors").exists()
