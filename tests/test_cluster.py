"""The files of `cluster/` and `jobs/`: schemas of KubeRay and Ray, and whatever they name exists here."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import typer
import yaml
from in_process import command as batchproj_command

import batchproj
from batchproj.cli import app
from batchproj.metrics import COUNTERS, GAUGES
from batchproj.pipeline import IDLE_SETTING
from batchproj.recipe import Recipe, load_recipe
from batchproj.space import open_space
from batchproj.worker_environment import KEPT_MEMORY

ROOT = Path(__file__).parent.parent
CLUSTER, JOBS = ROOT / "cluster", ROOT / "jobs"
CRDS = ROOT.parent / "shared" / "kuberay-crds"
RECIPES = sorted((JOBS / "recipes").glob("*.yaml"))
RAY_MANIFESTS = sorted(path for path in CLUSTER.glob("ray*.yaml") if path.name != "ray-aws.yaml")
VALUES = {
    "BATCHPROJ_SOURCE": "s3://bucket/photos",
    "BATCHPROJ_COLLECTION": "s3://bucket/photos.batchproj",
    "BATCHPROJ_RECIPE": "jobs/recipes/images-clip.yaml",
}

sys.path.append(str(JOBS))  # where python looks for a script's own modules


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def found(node: Any, key: str) -> Iterator[Any]:
    """Every value that stands under a key, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from found(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from found(value, key)


# --- schemas ------------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """A CRD's schema as jsonschema reads it: unknown keys are errors, except where the CRD preserves them."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        made["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not (schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema):
            made["additionalProperties"] = False
    if schema.get("x-kubernetes-embedded-resource") or schema.get("nullable"):
        made.pop("additionalProperties", None)
    return made


@pytest.fixture(scope="module")
def crds() -> dict[str, Any]:
    """Schemas of version v1 by kind."""
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}: copy ray-operator/config/crd/bases there to check against them")
    schemas = {}
    for path in CRDS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        (v1,) = [version for version in spec["versions"] if version["name"] == "v1"]
        schema = closed(v1["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[spec["names"]["kind"]] = schema
    return schemas


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=lambda path: path.name)
def test_ray_resources_are_what_kuberay_takes(path: Path, crds: dict[str, Any]) -> None:
    for document in documents(path):
        jsonschema.Draft7Validator(crds[document["kind"]]).validate(document)


def test_the_check_sees_what_kuberay_would_not_take(crds: dict[str, Any]) -> None:
    (document,) = documents(CLUSTER / "raycluster.yaml")
    document["spec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.Draft7Validator(crds["RayCluster"]).validate(document)


def test_the_schedules_pod_is_one(crds: dict[str, Any]) -> None:
    """A CronJob's pod has the schema of any other, which is in RayJob's."""
    (cron,) = documents(CLUSTER / "cronjob-reembed.yaml")
    pod = crds["RayJob"]["properties"]["spec"]["properties"]["submitterPodTemplate"]
    jsonschema.Draft7Validator(pod).validate(cron["spec"]["jobTemplate"]["spec"]["template"])
    told = cron["spec"]
    assert (told["concurrencyPolicy"], told["startingDeadlineSeconds"] > 0) == ("Forbid", True)


def test_the_cluster_on_ec2_is_what_ray_takes() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    (document,) = documents(CLUSTER / "ray-aws.yaml")
    jsonschema.validate(document, schema)
    assert document["head_node_type"] in document["available_node_types"]
    assert "--dashboard-host=127.0.0.1" in document["head_start_ray_commands"][1]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl to see what kustomize makes of it")
def test_kustomize_puts_the_values_in() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(CLUSTER)], capture_output=True, text=True, timeout=60, check=True
    )
    made = list(yaml.safe_load_all(done.stdout))
    assert {document["metadata"]["namespace"] for document in made} == {"batchproj"}
    images = {image for image in found(made, "image") if isinstance(image, str)}
    assert images == {f"registry.example.com/batchproj:{batchproj.__version__}-{each}" for each in ("cpu", "cuda")}
    (values,) = [document["data"] for document in made if document["kind"] == "ConfigMap"]
    assert set(values) >= set(VALUES)


def test_kustomize_names_every_manifest() -> None:
    text = (CLUSTER / "kustomization.yaml").read_text()
    others = {"kustomization.yaml", "ray-aws.yaml", "rayjob-embed.yaml"}
    assert [path.name for path in CLUSTER.glob("*.yaml") if path.name not in text and path.name not in others] == []


# --- what the manifests promise -----------------------------------------------------------------


def pods(path: Path, key: str = "template") -> list[dict[str, Any]]:
    return [template["spec"] for template in found(documents(path), key) if "containers" in template["spec"]]


@pytest.mark.parametrize("path", [*RAY_MANIFESTS, CLUSTER / "cronjob-reembed.yaml"], ids=lambda path: path.name)
def test_pods_run_without_root_and_with_limits(path: Path) -> None:
    for pod in [*pods(path), *pods(path, "submitterPodTemplate")]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert re.fullmatch(rf"batchproj:{re.escape(batchproj.__version__)}-(cpu|cuda)", container["image"])


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=lambda path: path.name)
def test_clusters_ask_for_a_token_and_show_no_dashboard(path: Path) -> None:
    text = path.read_text()
    assert "ray.io/v1alpha1" not in text
    for group in found(documents(path), "headGroupSpec"):
        assert (group["serviceType"], group["enableIngress"]) == ("ClusterIP", False)
    auths = list(found(documents(path), "authOptions"))
    assert auths == [{"mode": "token", "secretName": "batchproj-ray-token"}]
    assert set(found(documents(path), "rayVersion")) == {ray.__version__}
    assert "AWS_SECRET" not in text
    for pod in pods(path):
        assert pod["serviceAccountName"] == "batchproj"
        assert all({"livenessProbe", "readinessProbe"} <= container.keys() for container in pod["containers"])


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=lambda path: path.name)
def test_nobody_moves_a_head_to_save_a_node(path: Path) -> None:
    for group in found(documents(path), "headGroupSpec"):
        assert group["template"]["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=lambda path: path.name)
def test_gpu_workers_come_from_nothing_and_go_when_spot_nodes_do(path: Path) -> None:
    for group in (each for groups in found(documents(path), "workerGroupSpecs") for each in groups):
        pod = group["template"]["spec"]
        if group["groupName"] == "gpu":
            assert (group["minReplicas"], group["replicas"]) == (0, 0)
        keys = {toleration["key"] for toleration in pod["tolerations"]}
        assert {"nvidia.com/gpu", "eks.amazonaws.com/capacityType", "cloud.google.com/gke-spot"} <= keys
        assert "preferredDuringSchedulingIgnoredDuringExecution" in pod["affinity"]["nodeAffinity"]


def test_both_schedules_run_the_same_job() -> None:
    (form,) = documents(CLUSTER / "rayjob-reembed.yaml")
    (cron,) = documents(CLUSTER / "raycronjob-reembed.yaml")
    assert form["spec"].pop("suspend") is True
    assert cron["spec"]["jobTemplate"] == form["spec"]


def gib(text: str) -> float:
    return float(text.removesuffix("Gi"))


def node_types() -> dict[str, dict[str, float]]:
    """What Ray sees of a worker of each group: CPUs, GPUs, GiB (as much as Ray gives its workers), its own resource."""
    (job,) = documents(CLUSTER / "rayjob-embed.yaml")
    offered = {}
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        assert str(requests["cpu"]) == group["rayStartParams"]["num-cpus"]
        own = json.loads(json.loads(group["rayStartParams"]["resources"]))
        offered[group["groupName"]] = {
            "cpus": float(requests["cpu"]),
            "gpus": float(requests.get("nvidia.com/gpu", 0)),
            "gib": gib(requests["memory"]) * 0.7,  # the rest is the object store's
            "most": group["maxReplicas"],
            **own,
        }
    return offered


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipes_workers_fit_on_the_clusters_nodes(path: Path) -> None:
    recipe = load_recipe(str(path))
    offered = node_types()
    for modality, pool in recipe.pools.items():
        (kind,) = [name for name, node in offered.items() if pool.resources.keys() <= node.keys()]
        node = offered[kind]
        assert pool.cpus is not None
        per_node = min(
            (node["cpus"] - recipe.cpu_headroom) // pool.cpus,
            node["gib"] // (pool.memory_gib or 1),
            node["gpus"] // pool.gpus if pool.gpus else 99,
        )
        assert per_node >= 1, modality
        assert pool.max_workers is not None
        assert pool.max_workers <= per_node * node["most"], modality
        assert (pool.threads or 1) <= node["cpus"]


# --- commands -----------------------------------------------------------------------------------


def parse(line: list[str]) -> dict[str, Any]:
    """The parameters of a `batchproj` command line, as the command itself reads them."""
    group: Any = typer.main.get_command(app)
    parsed: dict[str, Any] = group.commands[line[0]].make_context(line[0], line[1:]).params
    return parsed


def job_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `python jobs/NAME.py …` makes of its arguments."""
    script = ROOT / words[1]
    assert (words[0], script.is_file()) == ("python", True)
    if script.name == "reembed.py":
        import batchproj.search

        class Live:
            """A collection that was embedded from somewhere."""

            def __init__(self, _: str) -> None:
                self.snapshot = type("Snapshot", (), {"source": "s3://bucket/photos"})

        monkeypatch.setattr(batchproj.search, "Collection", Live)
    monkeypatch.setattr(sys, "argv", words[1:])
    ran: list[list[str]] = []
    monkeypatch.setattr("command.main", lambda: ran.append(sys.argv[1:]))
    runpy.run_path(str(script), run_name="__main__")
    return ran[0]


@pytest.mark.parametrize("name", ["rayjob-embed.yaml", "rayjob-reembed.yaml", "raycronjob-reembed.yaml"])
def test_entry_points_exist_and_their_flags_parse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = found(documents(CLUSTER / name), "entrypoint")
    (submitter,) = pods(CLUSTER / name, "submitterPodTemplate")
    assert "command" not in submitter["containers"][0]  # KubeRay puts the entrypoint there only where there is none
    hooks = {"BATCHPROJ_ON_FAILURE": "https://hooks.example.com/a b", "BATCHPROJ_ON_SUCCESS": ""}
    (tmp_echo,) = ['python() { printf "%s\\n" python "$@"; return 0; }; ']
    done = subprocess.run(
        ["/bin/bash", "-c", tmp_echo + entry], capture_output=True, text=True, env={**VALUES, **hooks}, check=True
    )
    words = done.stdout.splitlines()
    monkeypatch.chdir(ROOT)
    named = parse(job_command(words, monkeypatch))
    assert named["collection"] == VALUES["BATCHPROJ_COLLECTION"]
    assert named["source"] == VALUES["BATCHPROJ_SOURCE"]
    assert (named["on_failure"], named["on_success"]) == (hooks["BATCHPROJ_ON_FAILURE"], None)
    assert (named["allow_mass_delete"], named["max_bad"]) == (False, 0.05)
    assert load_recipe(named["recipe"])


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (3, 3), (75, 0), (143, 143)])
@pytest.mark.parametrize("name", ["rayjob-embed.yaml", "rayjob-reembed.yaml"])
def test_a_held_lease_is_no_failure_of_the_job(name: str, code: int, expected: int) -> None:
    (entry,) = found(documents(CLUSTER / name), "entrypoint")
    line = f"python() {{ return {code}; }}; {entry}"
    assert subprocess.run(["/bin/bash", "-c", line], env=VALUES, check=False).returncode == expected


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_its_command_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(str(path))
    if recipe.space is not None:
        assert open_space(recipe.space).space.members().keys() == recipe.pools.keys()
    (line,) = re.findall(r"^#\s+(python jobs/.*)$", path.read_text(), re.MULTILINE)
    monkeypatch.chdir(ROOT)
    named = parse(job_command(shlex.split(line), monkeypatch))
    if named.get("recipe"):
        assert named["recipe"] == str(path.relative_to(ROOT))
    else:
        assert named["workers"] == recipe.train.workers
        assert named["promote"] is True


def test_jobs_run(corpus: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe := tmp_path / "recipe.yaml").write_text(f"space: {tiny_space}\nunits: {{max_items: 8}}\n")
    told = [runpy.run_path(str(JOBS / f"{name}.py"))["command"] for name in ("embed", "reembed", "evaluate")]
    done = batchproj_command(*told[0](str(recipe), str(corpus), str(tmp_path / "c"), "--json"))
    assert json.loads(done.stdout)["embedded"] == 24, done.stderr
    done = batchproj_command(*told[1](str(recipe), str(tmp_path / "c"), "--json"))
    assert json.loads(done.stdout)["unchanged"] == 24, done.stderr
    done = batchproj_command(*told[2](str(tmp_path / "c"), "--json"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["embed", "reembed", "train", "evaluate"])
def test_a_job_without_arguments_says_what_it_takes(name: str) -> None:
    done = subprocess.run([sys.executable, str(JOBS / f"{name}.py")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"python jobs/{name}.py" in done.stderr


def test_the_search_services_arguments_are_what_it_takes() -> None:
    (document,) = documents(CLUSTER / "rayservice-search.yaml")
    (told,) = yaml.safe_load(document["spec"]["serveConfigV2"])["applications"]
    module, _, name = told["import_path"].partition(":")
    deployment = importlib.import_module(module)
    assert callable(getattr(deployment, name))
    arguments = deployment.Arguments.model_validate(told["args"])
    assert f"{document['metadata']['name']}-serve-svc" in arguments.hosts.split(",")  # as KubeRay names it
    (group,) = document["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    per_node = int(group["rayStartParams"]["num-cpus"]) // arguments.cpus
    assert arguments.replicas <= per_node * group["maxReplicas"]
    for pod in pods(CLUSTER / "rayservice-search.yaml"):  # any of them may build the application
        (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "serve-token"]
        assert Path(arguments.token_file).parent == Path(mount["mountPath"])
        assert {"name": "serve-token", "secret": {"secretName": "batchproj-serve-token"}} in pod["volumes"]


# --- the image ----------------------------------------------------------------------------------


def test_the_image_holds_what_the_manifests_run() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    scripts = {f"jobs/{name}.py" for name in ("command", "embed", "reembed", "train", "evaluate")}
    assert {*scripts, "jobs/recipes", "cluster/run_rayjob.py"} <= copied
    assert ".[rayserve]" in text  # of the search service
    assert "USER 1000" in text
    assert "=".join(IDLE_SETTING) in text
    told = (CLUSTER / "README.md").read_text()
    assert "=".join(IDLE_SETTING) in told
    assert all(f"{name}={value}" in told for name, value in KEPT_MEMORY.items())
    assert {"wget", "rsync"} <= set(text.split())  # of the probes, and of `ray up`
    assert f"ARG RAY={ray.__version__}\n" in text  # as the manifests' rayVersion
    assert re.search(r"^ARG VARIANT=cpu$", text, re.MULTILINE)


# --- one machine --------------------------------------------------------------------------------


def unit_file(name: str) -> dict[str, str]:
    lines = (CLUSTER / "one-machine" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_timer_catches_up_and_a_held_lease_is_success() -> None:
    service, timer = unit_file("batchproj.service"), unit_file("batchproj.timer")
    assert (service["SuccessExitStatus"], service["Type"], timer["Persistent"]) == ("75", "oneshot", "true")
    program, *words = shlex.split(service["ExecStart"].replace("%%", "%"))
    assert Path(program).name == "batchproj"
    named = parse(words)
    assert (named["max_bad"], named["allow_mass_delete"]) == (0.05, False)
    assert Path(str(named["on_failure"])).name == "on-failure"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd to see what it makes of the units")
@pytest.mark.parametrize("whose", ["--user", "--system"])
def test_systemd_takes_the_units(whose: str, tmp_path: Path) -> None:
    for name in ("batchproj.service", "batchproj.timer"):
        shutil.copy(CLUSTER / "one-machine" / name, tmp_path)
    (program := tmp_path / ".venv/bin/batchproj").parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = ["batchproj.service", "batchproj.timer"]
    done = subprocess.run(
        ["systemd-analyze", "verify", whose, *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "PATH": os.environ["PATH"]},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")  # what it does not know it only says


def test_crons_line_parses_and_a_held_lease_is_success(tmp_path: Path) -> None:
    (line,) = [each for each in (CLUSTER / "one-machine/crontab").read_text().splitlines() if not each.startswith("#")]
    command = line.split(maxsplit=5)[5].replace("\\%", "%")
    parse(shlex.split(command.split(">>")[0])[1:])
    (programs := tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    for code, said in ((0, ""), (75, ""), (2, "error: why\n")):
        (program := programs / "batchproj").write_text(f"#!/bin/sh\necho 'error: why' >&2\nexit {code}\n")
        program.chmod(0o755)
        (tmp_path / ".cache/batchproj.log").unlink(missing_ok=True)
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env={"HOME": str(tmp_path)})
        assert done.stdout == said  # what cron sends by mail


# --- the schedule on Kubernetes -----------------------------------------------------------------


@pytest.fixture
def kubernetes() -> Iterator[ThreadingHTTPServer]:
    """An API server that keeps one suspended RayJob, and lets the copies of it end as `outcomes` says."""

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if name == "batchproj-reembed":
                self._answer(documents(CLUSTER / "rayjob-reembed.yaml")[0])
            elif name == "batchproj-reembed-x1":
                state = self.server.outcomes.pop(0)  # type: ignore[attr-defined]
                self._answer({"status": state})
            else:
                self._answer({}, 404)

        def do_POST(self) -> None:
            made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.made.append(made)  # type: ignore[attr-defined]
            self._answer({**made, "metadata": {"name": made["metadata"]["generateName"] + "x1"}}, 201)

        def _answer(self, document: dict[str, Any], code: int = 200) -> None:
            is_known = self.headers["Authorization"] == "Bearer pod-token"
            self.send_response(code if is_known else 401)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.made, server.outcomes = [], []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, 1),
        ({"jobDeploymentStatus": "Failed", "message": "no quota"}, 1),
    ],
)
def test_the_schedule_runs_a_copy_of_the_suspended_job(
    kubernetes: ThreadingHTTPServer, last: dict[str, str], expected: int, tmp_path: Path, crds: dict[str, Any]
) -> None:
    (tmp_path / "token").write_text("pod-token")
    script = runpy.run_path(str(CLUSTER / "run_rayjob.py"))
    kubernetes.outcomes = [{}, {"jobDeploymentStatus": "Running"}, last]  # type: ignore[attr-defined]
    api = script["Api"](f"http://127.0.0.1:{kubernetes.server_port}", "batchproj", tmp_path)
    owner = script["Owner"]("batchproj-reembed-29", "0b1d")
    assert script["run"](api, "batchproj-reembed", owner, 0.01) == expected
    (made,) = kubernetes.made  # type: ignore[attr-defined]
    job = {"apiVersion": "batch/v1", "kind": "Job", "name": "batchproj-reembed-29", "uid": "0b1d"}
    assert made["metadata"].pop("ownerReferences") == [job]
    assert made["spec"]["suspend"] is False
    jsonschema.Draft7Validator(crds["RayJob"]).validate(made)
    assert script["run"](api, "another", owner, 0.01) == 2


def test_the_schedules_pod_tells_its_script_what_it_asks_for() -> None:
    (cron,) = documents(CLUSTER / "cronjob-reembed.yaml")
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    given = {variable["name"] for variable in container["env"]}
    asked = set(re.findall(r'os\.environ\["(\w+)"\]', (CLUSTER / "run_rayjob.py").read_text()))
    assert asked == given | {"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}  # which every pod has


# --- monitoring ---------------------------------------------------------------------------------


def test_the_dashboard_shows_nothing_that_is_not_measured() -> None:
    """Ours as Ray serves them, see test_submit.py; those of Ray's nodes as its reporter names them."""
    ours = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}
    reporter = importlib.import_module("ray.dashboard.modules.reporter.reporter_agent")
    nodes = {f"ray_{name}" for name in reporter.METRICS_GAUGES}
    shown = set(re.findall(r"\bray_\w+", (CLUSTER / "monitoring/dashboard.json").read_text()))
    assert shown <= ours | nodes
    assert ours <= shown
    tags = {tag for tag, _ in (*COUNTERS.values(), *GAUGES.values()) if tag} | {"collection"}
    by = set(re.findall(r"by \((\w+)\)", (CLUSTER / "monitoring/dashboard.json").read_text()))
    assert by <= tags


def test_prometheus_scrapes_the_port_that_the_heads_serve() -> None:
    (document,) = documents(CLUSTER / "monitoring/prometheus.yaml")
    labels = [rule.get("replacement") for job in document["scrape_configs"] for rule in job.get("relabel_configs", [])]
    assert "$1:8080" in labels
    ports = {port["containerPort"] for each in found(documents(CLUSTER / "raycluster.yaml"), "ports") for port in each}
    assert 8080 in ports


def test_the_recipes_defaults_are_safe() -> None:
    assert Recipe().cpu_headroom > 0
