"""`python -m lsmooth.cli` is the `lsmooth` command."""

from lsmooth.cli import main

main(prog_name="lsmooth")
