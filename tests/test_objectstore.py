from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from proxy import Proxy, proxied

from batchproj import objectstore
from batchproj.errors import ItemFault, SourceError, UsageError
from batchproj.objectstore import Folder, canonical, list_objects, read_pinned
from batchproj.schema import Reason


@pytest.fixture(params=["file", "s3", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_bucket")) + "/data"
    if request.param == "memory":
        return f"memory:///{tmp_path.name}/data"
    return str(tmp_path / "data")


@pytest.fixture(params=["file", "s3"])
def pinned_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Stores whose objects have a version; fsspec's memory file system has none."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_bucket")) + "/data"
    return str(tmp_path / "data")


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with proxied(s3_endpoint) as between:
        yield between


def fill(root: str, names: list[str]) -> None:
    folder = Folder(root)
    for name in names:
        folder.write(name, name.encode())


def keys(url: str) -> list[str]:
    return sorted(listed.key for page in list_objects(url) for listed in page)


def test_lists_a_folder_with_keys_below_it(root: str) -> None:
    fill(root, ["a.txt", "deep/er/b.png", "deep/c d é.txt"])
    assert keys(root) == ["a.txt", "deep/c d é.txt", "deep/er/b.png"]
    assert keys(root + "/") == keys(root)


def test_lists_a_glob_with_keys_below_its_fixed_part(root: str) -> None:
    fill(root, ["x/a.png", "x/b.txt", "y/c.png", "y/deep/d.png"])
    assert keys(f"{root}/*/*.png") == ["x/a.png", "y/c.png"]
    assert keys(f"{root}/**/*.png") == ["x/a.png", "y/c.png", "y/deep/d.png"]


def test_a_listed_object_reads_back(root: str) -> None:
    fill(root, ["a.txt"])
    (listed,) = [row for page in list_objects(root) for row in page]
    assert listed.uri == canonical(root) + "/a.txt"
    assert read_pinned(listed.uri, listed.size, listed.version) == b"a.txt"


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize(
    "replace",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda _: None],
    ids=["folder", "pipe", "device", "nothing"],
)
def test_what_is_no_file_by_the_time_it_is_read_has_changed(
    tmp_path: Path, replace: Callable[[Path], None], stay: bool
) -> None:
    file = tmp_path / "source" / "a.txt"
    fill(str(file.parent), ["a.txt"])
    (listed,) = [row for page in list_objects(str(file.parent)) for row in page]
    file.unlink()
    replace(file)
    with pytest.raises(ItemFault, match="since it was listed") as found:
        read_pinned(listed.uri, listed.size, listed.version, stay)
    assert found.value.reason is Reason.CHANGED
    shutil.rmtree(file.parent)
    file.parent.touch()  # a file where its folder was
    with pytest.raises(ItemFault, match="since it was listed"):
        read_pinned(listed.uri, listed.size, listed.version, stay)


def test_a_prefix_that_is_no_folder_lists_on_s3(s3_bucket: str) -> None:
    fill(s3_bucket, ["frogs/1.png", "frogs/2.png", "fish/3.png"])
    assert keys(f"{s3_bucket}/frogs/1") == ["1.png"]
    assert keys(f"{s3_bucket}/f") == ["fish/3.png", "frogs/1.png", "frogs/2.png"]


def test_s3_listing_comes_in_pages(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore.listing, "LIST_PAGE", 4)
    fill(s3_bucket, [f"d/{number}.txt" for number in range(10)])
    assert [len(page) for page in list_objects(f"{s3_bucket}/d")] == [4, 4, 2]


@pytest.mark.parametrize("url", ["/nowhere/at/all", "s3://no-such-bucket-here/x", "nosuchscheme://x"])
def test_a_missing_source_is_one_line(url: str, s3_bucket: str) -> None:
    with pytest.raises(SourceError) as caught:
        list(list_objects(url))
    assert url.split("://")[-1].split("/")[0] in str(caught.value)


def test_an_overwritten_object_is_not_read_as_the_listed_one(pinned_root: str) -> None:
    fill(pinned_root, ["a.txt"])
    (listed,) = [row for page in list_objects(pinned_root) for row in page]
    Folder(pinned_root).write("a.txt", b"other")
    with pytest.raises(ItemFault) as caught:
        read_pinned(listed.uri, listed.size, listed.version)
    assert caught.value.reason is Reason.CHANGED


def test_a_removed_object_is_a_fault_not_a_crash(root: str) -> None:
    fill(root, ["a.txt"])
    (listed,) = [row for page in list_objects(root) for row in page]
    folder = Folder(root)
    folder._fs.rm(folder.path("a.txt"))
    with pytest.raises(ItemFault) as caught:
        read_pinned(listed.uri, listed.size, listed.version)
    assert caught.value.reason is Reason.CHANGED


def test_create_puts_only_if_absent(root: str) -> None:
    folder = Folder(root)
    assert folder.create("claim", b"first")
    assert not folder.create("claim", b"second")
    assert folder.read("claim") == b"first"


def test_names_of_a_missing_folder_are_none(root: str) -> None:
    folder = Folder(root)
    assert folder.names("nothing") == []
    folder.write("some/b", b"")
    folder.write("some/a", b"")
    assert folder.names("some") == ["a", "b"]


def test_local_listing_skips_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nothing.txt").symlink_to("missing.txt")
    (tmp_path / "itself.txt").symlink_to("itself.txt")
    assert keys(str(tmp_path)) == ["a.txt"]


def test_odd_names_are_listed_and_read_as_they_are(root: str) -> None:
    names = [
        "a b.txt",
        "it's.txt",
        'say "x".txt',
        "50%.txt",
        "%2e.txt",
        "new\nline.txt",
        "frog🐸.txt",
        "=cmd.txt",
        "a#b?.txt",
    ]
    if root.startswith("s3:"):
        names.remove("new\nline.txt")  # moto's routes do not match a newline
    if root.startswith("memory:"):
        names.remove("a#b?.txt")  # fsspec's memory file system reads `?` as a wildcard
    fill(root, names)
    listed = [row for page in list_objects(root) for row in page]
    assert sorted(row.key for row in listed) == sorted(names)
    assert all(read_pinned(row.uri, row.size, row.version) == row.key.encode() for row in listed)


def test_a_folder_that_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    fill(str(tmp_path / "[1] *"), ["a.txt"])
    assert keys(str(tmp_path / "[1] *")) == ["a.txt"]


def test_a_name_that_is_not_utf8_is_a_fault_of_that_file_alone(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    (tmp_path / "good.txt").write_text("x")
    bad, good = sorted((row for page in list_objects(str(tmp_path)) for row in page), key=lambda row: row.key)
    assert bad.key == "caf\\xe9.txt"
    assert read_pinned(good.uri, good.size, good.version) == b"x"
    with pytest.raises(ItemFault) as caught:
        read_pinned(bad.uri, bad.size, bad.version)
    assert caught.value.reason is Reason.BAD_NAME


def test_files_are_all_below_a_folder_with_their_sizes(root: str) -> None:
    fill(root, ["a", "sub/b1", "sub/deep/c22", "sub/.0f.part", "subway/d"])
    assert sorted(Folder(root).files("sub")) == [("sub/.0f.part", 12), ("sub/b1", 6), ("sub/deep/c22", 12)]
    assert len(list(Folder(root).files())) == 5
    assert list(Folder(root).files("nothing")) == []
    assert list(Folder(root + "-nothing").files()) == []


def test_files_of_s3_come_page_by_page(s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore.listing, "LIST_PAGE", 4)
    names = [f"d/{number}" for number in range(10)]
    fill(s3_bucket, names)
    proxy.clear()
    found = Folder(s3_bucket).files("d")
    assert next(found)[0] == "d/0"
    assert len(proxy.requests) == 1
    assert [name for name, _ in found] == names[1:]
    assert len(proxy.requests) == 3


def test_a_page_that_fails_once_is_asked_for_once_more(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore.listing, "LIST_PAGE", 4)
    fill(s3_bucket, [f"d/{number}" for number in range(10)])
    for look in (lambda: keys(f"{s3_bucket}/d"), lambda: Folder(s3_bucket).names("d")):
        proxy.clear()
        proxy.fail_next(lambda request: "continuation-token" in request.query)
        assert look() == [str(number) for number in range(10)]
        assert len(proxy.requests) == 4


def test_names_of_a_folder_include_its_folders(root: str) -> None:
    fill(root, ["x/a", "x/sub/b", "x/sub/c"])
    assert Folder(root).names("x") == ["a", "sub"]


def test_remove_deletes_what_is_there(root: str) -> None:
    fill(root, ["a", "sub/deep/b", "sub/c"])
    folder = Folder(root)
    folder.remove(["sub/deep/b", "a", "never/was"])
    assert [name for name, _ in folder.files()] == ["sub/c"]
    folder.remove(iter(["sub/c"]))
    assert list(folder.files()) == []


def test_remove_leaves_no_empty_folder_below_the_root(tmp_path: Path) -> None:
    fill(str(tmp_path / "root"), ["a/b/c/one", "a/two"])
    Folder(str(tmp_path / "root")).remove(["a/b/c/one"])
    assert [path.name for path in (tmp_path / "root" / "a").iterdir()] == ["two"]
    Folder(str(tmp_path / "root")).remove(["a/two"])
    assert list((tmp_path / "root").iterdir()) == []


def test_remove_on_s3_asks_in_bulk(s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore.folder, "REMOVE_PAGE", 4)
    names = [f"d {number} é&<" for number in range(10)]
    fill(s3_bucket, names)
    proxy.clear()
    Folder(s3_bucket).remove(names)
    assert [request.method for request in proxy.requests] == ["POST"] * 3
    assert list(Folder(s3_bucket).files()) == []


def test_remove_on_s3_does_not_believe_a_200_with_faults_in_it(s3_bucket: str, proxy: Proxy) -> None:
    fault = b"<DeleteResult><Error><Key>a</Key><Code>%s</Code><Message>no</Message></Error></DeleteResult>"
    fill(s3_bucket, ["a"])
    folder = Folder(s3_bucket)
    proxy.answer_next(lambda request: request.method == "POST", 200, fault % b"AccessDenied")
    proxy.fail_next(lambda request: request.method == "DELETE", status=403, code="AccessDenied")
    with pytest.raises(UsageError, match="may not be read or written"):
        folder.remove(["a"])
    assert folder.exists("a")
    proxy.answer_next(lambda request: request.method == "POST", 200, fault % b"InternalError")
    folder.remove(["a"])
    assert not folder.exists("a")


def test_check_create_finds_stores_that_put_only_if_absent(pinned_root: str) -> None:
    folder = Folder(pinned_root)
    assert folder.check_create()
    assert list(folder.files()) == []


def test_check_create_finds_a_gateway_that_ignores_conditions(s3_bucket: str, proxy: Proxy) -> None:
    proxy.ignore_conditions = True
    assert not Folder(s3_bucket).check_create()
    proxy.ignore_conditions = False
    proxy.fail_next(lambda request: request.method == "PUT", status=501, code="NotImplemented")
    assert not Folder(s3_bucket).check_create()
    assert list(Folder(s3_bucket).files()) == []


def test_a_create_whose_answer_is_lost_was_ours(s3_bucket: str, proxy: Proxy) -> None:
    folder = Folder(s3_bucket)
    proxy.drop_answer(lambda request: request.method == "PUT")
    assert folder.create("claim", b"ours")
    assert proxy.count(lambda request: request.method == "PUT") == 2
    assert not folder.create("claim", b"theirs")


def test_a_local_create_whose_answer_is_lost_was_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_and_time_out(part: Path, path: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        link(part, path)
        raise TimeoutError("the file server did not answer")

    monkeypatch.setattr(os, "link", link_and_time_out)
    assert Folder(str(tmp_path)).create("claim", b"ours")
    assert not Folder(str(tmp_path)).create("claim", b"theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]
