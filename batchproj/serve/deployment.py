"""The service on Ray Serve, for more requests than one process answers; each replica follows the live run by itself.

    serve run batchproj.serve.deployment:build collection=s3://bucket/photos token_file=/run/secrets/token

Behind Ray's proxy anybody who reaches it reaches the service, so a token is demanded.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from batchproj.errors import UsageError
from batchproj.serve.app import create_app
from batchproj.serve.server import read_token
from batchproj.serve.service import Service
from batchproj.serve.settings import Settings

ONGOING = 192
"""Requests that a replica takes: it turns away by itself, with 429, what is too many of one kind."""


class Arguments(BaseModel):
    """What `serve run` is told after the import path; `hosts` are the names that Ray's proxy is called by, with commas
    between. `cpus` is for each replica, and as many threads its model has."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    collection: str
    token_file: str
    hosts: str = ""
    replicas: int = Field(default=2, ge=1)
    cpus: int = Field(default=2, ge=1)


def build(arguments: Arguments) -> Any:
    """The Serve application."""
    token = read_token(arguments.token_file)
    if token is None:
        raise UsageError("token_file is empty; on Ray Serve a token is demanded")
    hosts = tuple(host for host in arguments.hosts.split(",") if host)
    settings = Settings(token=token, hosts=hosts, model_threads=arguments.cpus)

    def app() -> FastAPI:
        """Made in the replica: models and the table are opened there."""
        return create_app(Service(arguments.collection, settings))

    deployed = serve.deployment(
        name="batchproj",
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.cpus},
        max_ongoing_requests=ONGOING,
    )
    return deployed(serve.ingress(app)()).bind()
