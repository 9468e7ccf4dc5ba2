"""Run a copy of a suspended RayJob, and wait for its end: what the schedule does.

    python cluster/run_rayjob.py NAME

In a pod, with the service account's own token; NAMESPACE is the pod's, JOB_NAME and JOB_UID are of the Job that it
belongs to, and so does the copy: it goes when the CronJob forgets that Job. Exit codes: 0 the job is done, 1 it failed,
2 it cannot be made.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POLL_S = 10.0
ANSWER_S = 30.0
ENDED = ("Complete", "Failed")


@dataclass(frozen=True)
class Owner:
    """The Job of the schedule that a copy is made by."""

    name: str
    uid: str


class Api:
    """The RayJobs of a namespace."""

    def __init__(self, server: str, namespace: str, account: Path = ACCOUNT) -> None:
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._account = account

    def get(self, name: str) -> dict[str, Any]:
        return self._call("GET", f"{self._url}/{name}")

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", self._url, job)

    def _call(self, method: str, url: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
        authority = self._account / "ca.crt"
        answer = requests.request(
            method,
            url,
            json=document,
            timeout=ANSWER_S,
            # read for every call: such tokens are renewed
            headers={"Authorization": f"Bearer {(self._account / 'token').read_text()}"},
            verify=str(authority) if authority.exists() else True,
        )
        answer.raise_for_status()
        return dict(answer.json())


def copy_of(form: dict[str, Any], owner: Owner) -> dict[str, Any]:
    """The job that a suspended one stands for."""
    return {
        "apiVersion": form["apiVersion"],
        "kind": form["kind"],
        "metadata": {
            "generateName": f"{form['metadata']['name']}-",
            "labels": form["metadata"].get("labels", {}),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": owner.name, "uid": owner.uid}],
        },
        "spec": {**form["spec"], "suspend": False},
    }


def run(api: Api, name: str, owner: Owner, poll_s: float = POLL_S) -> int:
    try:
        job = api.create(copy_of(api.get(name), owner))["metadata"]["name"]
    except (requests.exceptions.RequestException, KeyError) as error:
        print(f"error: no copy of RayJob {name} can be made: {error}", file=sys.stderr)
        return 2
    print(f"RayJob {job} is created", flush=True)
    while True:
        time.sleep(poll_s)
        try:
            status = api.get(job).get("status", {})
        except requests.exceptions.ConnectionError:  # the API server is being replaced: the job goes on
            continue
        if (state := status.get("jobDeploymentStatus")) in ENDED:
            print(f"RayJob {job}: {state}, {status.get('jobStatus', 'never begun')}. {status.get('message', '')}")
            return 0 if state == "Complete" and status.get("jobStatus") == "SUCCEEDED" else 1


if __name__ == "__main__":
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    scheduled = Owner(os.environ["JOB_NAME"], os.environ["JOB_UID"])
    raise SystemExit(run(Api(f"https://{host}:{port}", os.environ["NAMESPACE"]), sys.argv[1], scheduled))
