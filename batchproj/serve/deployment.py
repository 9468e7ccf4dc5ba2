"""The service on Ray Serve, for more requests than one process answers; each replica follows the live run by itself.

    serve run batchproj.serve.deployment:build collection=s3://bucket/photos token_file=/run/secrets/token

Behind Ray's proxy anybody who reaches it reaches the service, so a token is demanded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from batchproj.config import validate
from batchproj.serve.app import create_app
from batchproj.serve.server import read_token
from batchproj.serve.service import Service
from batchproj.serve.settings import Settings

ONGOING = 192
"""Requests that a replica takes: it turns away by itself, with 429, what is too many of one kind."""


class Arguments(BaseModel):
    """What `serve run` is told after the import path, and a RayService under `args`.

    `token_file` is read where the application is built and by every replica: it lies on every node. `hosts` are the
    names that Ray's proxy is called by, with commas between. `cpus` is for each replica, and as many threads its model
    has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    collection: str
    token_file: str
    hosts: str = ""
    replicas: int = Field(default=2, ge=1)
    cpus: int = Field(default=2, ge=1)


def build(told: Mapping[str, Any]) -> Any:
    """The Serve application of such `Arguments`, which Ray hands over as a dict. Raises SpaceError for others."""
    from ray import serve  # an extra: what is in the manifest can be checked without it

    arguments = validate(Arguments, told, "the service's arguments")
    read_token(arguments.token_file)  # said here and not by a replica, which would be started again and again
    hosts = tuple(host for host in arguments.hosts.split(",") if host)

    def app() -> FastAPI:
        """Made in the replica: models and the table are opened there, and the token does not travel through Ray."""
        token = read_token(arguments.token_file)
        return create_app(
            Service(arguments.collection, Settings(token=token, hosts=hosts, model_threads=arguments.cpus))
        )

    deployed = serve.deployment(
        name="batchproj",
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.cpus},
        max_ongoing_requests=ONGOING,
    )
    return deployed(serve.ingress(app)()).bind()
