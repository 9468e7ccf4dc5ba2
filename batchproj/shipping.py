"""What travels with a command to a cluster: the local files that it names, and nothing else of this machine.

recipes and spaces     copied beside the job, the command then names the copies
source, collection     stay where they are: URLs, or absolute paths that every node sees
credentials            never; the cluster has its own
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import batchproj
from batchproj.credentials import has_credentials, masked
from batchproj.errors import UsageError
from batchproj.space import open_space, shipped_spaces
from batchproj.worker_environment import PATIENT_THREADS

PLACES = ("source", "collection", "out")
"""Parameters that name what is too large to travel, or what is written."""

SPACES = {"space": "--space", "adapter": "--adapter"}
RECIPE = "--recipe"
START = "job_start.py"
_HERE = Path(batchproj.__file__).parent
_PLAIN = re.compile(r"\w[\w.-]*")

ENVIRONMENT = {
    **dict([PATIENT_THREADS]),  # of several encoders that share the cores of a node
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # a job that is stopped gets so long to end by itself; Ray's three seconds are too few to close what is open
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
}
"""All that a job is told by its environment."""


@dataclass(frozen=True)
class Shipment:
    """A command as the cluster is to run it, and the folder that travels with it."""

    command: list[str]
    folder: Path
    with_code: bool

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", START, batchproj.__version__, *self.command])

    @property
    def runtime_env(self) -> dict[str, Any]:
        shipped = {"py_modules": [str(_HERE)]} if self.with_code else {}
        return {"working_dir": str(self.folder), "env_vars": dict(ENVIRONMENT), **shipped}


def pack(command: Sequence[str], named: Mapping[str, Any], folder: Path, with_code: bool) -> Shipment:
    """Put what a command needs into an empty folder; `named` are its parameters, as parsed.

    Raises UsageError for what would mean something else, or nothing, on the cluster.
    """
    for argument in command:
        if has_credentials(argument):
            raise UsageError(
                f"{masked(argument)} has credentials in it, which everyone who sees the cluster's jobs would see: "
                "take them out, and give them to the cluster's nodes (a service account, an instance's role)"
            )
    for parameter in PLACES:
        _check_place(parameter, named.get(parameter))
    shutil.copy(_HERE / START, folder)
    changed = {}
    if (recipe := named.get("recipe")) and "://" not in recipe:
        changed[RECIPE] = _ship_recipe(recipe, folder)
    for parameter, option in SPACES.items():
        reference = named.get(parameter)
        if reference and "://" not in reference and reference not in shipped_spaces():
            changed[option] = _ship_space(reference, folder, parameter)
    return Shipment(_with_options(command, changed), folder, with_code)


def _check_place(parameter: str, value: str | None) -> None:
    if value and "://" not in value and not value.startswith("/"):
        raise UsageError(
            f"{parameter} '{value}' is a path on this machine: expected a URL such as s3://bucket/folder, or an "
            "absolute path that all nodes of the cluster share"
        )


def _ship_recipe(recipe: str, folder: Path) -> str:
    from batchproj.recipe import load_recipe

    space = load_recipe(recipe).space  # what is wrong with a recipe is said here, not on the cluster
    if space is not None and "://" not in space and space not in shipped_spaces():
        raise UsageError(f"recipe {recipe} names the space '{space}' of this machine: expected it as --space {space}")
    shutil.copy(recipe, folder / "recipe.yaml")
    return "recipe.yaml"


def _ship_space(reference: str, parent: Path, below: str) -> str:
    """The space's file and the projectors that it names; models stay where they are."""
    opened = open_space(reference)
    target = parent / below
    if _PLAIN.fullmatch(opened.space.name):  # a space without a name is called as its folder
        target = target / opened.space.name
    target.mkdir(parents=True)
    home = Path(opened.folder.path(""))
    file = Path(reference) if reference.endswith((".yaml", ".yml")) else home / "space.yaml"
    shutil.copy(file, target / "space.yaml")
    for modality, member in opened.space.members().items():
        model = str(member.encoder.get("model", ""))
        if model.startswith((".", "~")):
            raise UsageError(
                f"{modality} of space {reference} names the model folder '{model}' of this machine: expected a URL, a "
                "hub id, package:NAME, or an absolute path that all nodes of the cluster share"
            )
        if member.projector is not None and member.projector.weights is not None:
            weights = member.projector.weights
            if weights.startswith("/") or ".." in PurePosixPath(weights).parts:
                raise UsageError(
                    f"{modality} of space {reference} has its projector elsewhere, {weights}: put it beside"
                )
            (target / weights).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(home / weights, target / weights)
    return str(target.relative_to(parent) / "space.yaml")


def _with_options(command: Sequence[str], changed: Mapping[str, str]) -> list[str]:
    """The command with other values of some options, written `--option value` or `--option=value`."""
    told: list[str] = []
    for argument in command:
        option, equals, _ = argument.partition("=")
        if told and told[-1] in changed:
            told.append(changed[told[-1]])
        elif equals and option in changed:
            told.append(f"{option}={changed[option]}")
        else:
            told.append(argument)
    return told
