"""The command, and `python -m batchproj`: who stops it while it is being imported sees no traceback of that."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Entry point; `batchproj.cli` puts its own handlers in the place of these."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: os._exit(128 + number))
    from batchproj import cli

    cli.main()


if __name__ == "__main__":
    main()
