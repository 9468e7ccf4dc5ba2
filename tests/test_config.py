"""Settings read strictly: what cannot be read is one line, and no exception of a library's."""

from __future__ import annotations

import pytest

from batchproj.config import read_yaml
from batchproj.errors import SpaceError


@pytest.mark.parametrize(
    "data",
    [
        b"name: Kr\xf6te",
        b"a: [1",
        b"a: 2024-99-99",
        b"a: !!timestamp x",
        b"a: !!int x",
        b"a: !!python/object/apply:os.system [x]",
        b"a: " + b"[" * 3_000,
    ],
)
def test_what_is_no_yaml_is_said_in_one_line(data: bytes) -> None:
    with pytest.raises(SpaceError, match=r"recipe r\.yaml is not YAML: [^\n]+$"):
        read_yaml(data, "recipe r.yaml")
