"""`python -m batchproj`."""

from batchproj.cli import main

main()
