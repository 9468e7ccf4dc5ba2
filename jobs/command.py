"""What the entry points beside this file share: a command line of `batchproj`, and its end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from batchproj.cli import main


def run(usage: str, arguments: int, command: Callable[..., list[str]]) -> None:
    """Run what `command` makes of the first so many arguments and the flags behind them; its exit code is the job's."""
    given = sys.argv[1:]
    if len(given) < arguments or any(word.startswith("-") for word in given[:arguments]):
        print(usage, file=sys.stderr)
        raise SystemExit(0 if given[:1] == ["--help"] else 2)
    sys.argv = ["batchproj", *command(*given)]
    main()
