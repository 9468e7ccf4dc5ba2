"""Models that are not on this machine yet: brought here once, whole or not at all, with a bar for who watches.

any fsspec URL    below $BATCHPROJ_CACHE, ~/.cache/batchproj if that is unset
a model hub id    in the hub's own cache, $HF_HOME; a pinned commit that is there needs no network
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from batchproj.errors import SourceError, WeightsError
from batchproj.objectstore import Folder, canonical, list_objects

Wanted = Callable[[PurePosixPath], bool]
"""Whether a file, by its path below the model's folder, is part of the model."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN_LINE_S = 5.0

_watchers: list[TextIO] = []


@contextmanager
def watch_fetching(stream: TextIO) -> Iterator[None]:
    """Show a bar of bytes on `stream` for whatever is fetched inside."""
    _watchers.append(stream)
    try:
        yield
    finally:
        _watchers.remove(stream)


def from_url(url: str, wanted: Wanted) -> Path:
    """The local folder of the model at `url`; raises WeightsError if it cannot be fetched.

    One process of a machine fetches it, the others wait.
    """
    from filelock import FileLock

    if (target := url_folder(url)).is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                fresh = Path(scratch) / "model"
                try:
                    _download(url, fresh, wanted)
                except (SourceError, OSError) as error:
                    raise WeightsError(f"cannot fetch model '{url}': {error}: check the URL and credentials") from error
                fresh.rename(target)
    return target


def cache_root() -> Path:
    """What this machine keeps for every command: $BATCHPROJ_CACHE, or the default."""
    return Path(os.environ.get("BATCHPROJ_CACHE") or "~/.cache/batchproj").expanduser()


def url_folder(url: str) -> Path:
    """Where the model at `url` is, or would be."""
    return cache_root() / "models" / hashlib.sha256(canonical(url).encode()).hexdigest()


def _download(url: str, fresh: Path, wanted: Wanted) -> None:
    store = Folder(url)
    listed = [each for page in list_objects(url.rstrip("/") + "/") for each in page]
    files = [(PurePosixPath(each.key), each.size) for each in listed]
    files = [(inside, size) for inside, size in files if ".." not in inside.parts and wanted(inside)]
    fresh.mkdir()
    with _bar()(total=sum(size for _, size in files), unit="B", unit_scale=True, desc=url) as bar:
        for inside, size in files:
            (fresh / inside).parent.mkdir(parents=True, exist_ok=True)
            store.download(str(inside), fresh / inside)
            bar.update(size)


def from_hub(repo: str, revision: str | None, patterns: list[str], skipped: list[str]) -> Path:
    """The local folder of a hub's repository at a revision; raises WeightsError if it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if (here := hub_folder(repo, revision, patterns, skipped)) is not None:
        return here
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, ignore_patterns=skipped, tqdm_class=_bar()
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        at = f" at revision '{revision}'" if revision else ""
        raise WeightsError(
            f"cannot get model '{repo}'{at}: no such folder here, and {_said_by_hub(error, revision)}"
        ) from error


def _said_by_hub(error: Exception, revision: str | None) -> str:
    """What keeps a model away, and the way out."""
    from huggingface_hub import errors

    match error:
        case errors.RevisionNotFoundError():
            return f"the hub has the model, but no revision '{revision}' of it: name a commit, tag or branch it has"
        case errors.GatedRepoError():
            return "the hub gives it to those who accepted its terms: accept them there and set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return "the hub has no such model, or not for you: check the name; for a private one set HF_TOKEN"
        case errors.LocalEntryNotFoundError():
            return "the hub cannot be reached: a folder, a URL or package:NAME/folder works without it"
        case _:
            return f"the hub said {type(error).__name__}: a folder, a URL or package:NAME/folder works without the hub"


def hub_folder(repo: str, revision: str | None, patterns: list[str], skipped: list[str]) -> Path | None:
    """Where a pinned commit of a repository is, complete; None if it is not, or a name that may have moved."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if revision is None or not _COMMIT.fullmatch(revision):
        return None
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, ignore_patterns=skipped, local_files_only=True
            )
        )
    except (OSError, HFValidationError, ValueError):
        return None


def _bar() -> type[Any]:
    """A bar on the stream of who watches: libraries' output is not shown, and the hub's own bar can be off."""
    from tqdm import tqdm

    stream = _watchers[-1] if _watchers else None

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if stream is None:
                kwargs["disable"] = True
            else:
                kwargs |= {"file": stream, "mininterval": 0.1 if stream.isatty() else _PLAIN_LINE_S}
            super().__init__(*args, **kwargs)

    return Bar
