"""The first thing that a submitted job does on the cluster: travels with it, and imports nothing of ours before it
knows that there is something to import.

    python job_start.py VERSION COMMAND ...     runs `batchproj COMMAND ...` if the cluster's batchproj is VERSION
"""

from __future__ import annotations

import sys

WRONG = 2


def wrong(wanted: str) -> str | None:
    """Why the cluster cannot do a job of this version, in one line."""
    cure = f"use an image with batchproj {wanted} (cluster/Dockerfile), or submit with --ship-code"
    try:
        import batchproj
    except ImportError as error:
        return f"the cluster has no batchproj ({error}): {cure}"
    if batchproj.__version__ != wanted:
        return f"the cluster has batchproj {batchproj.__version__}, the job was submitted by {wanted}: {cure}"
    return None


def main(wanted: str, *command: str) -> None:
    if said := wrong(wanted):
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(WRONG)
    from batchproj.cli import main as run
    from batchproj.job_log import Marked

    sys.argv = ["batchproj", *command]
    sys.stdout = Marked(sys.stdout)
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
