"""`python -m fl` is the command `fl`."""

from fl.cli import main

main()
