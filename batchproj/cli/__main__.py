"""`python -m batchproj.cli`."""

from batchproj.cli import main

main()
