"""`python -m fl` is the command `fl`."""

from fl.cli.app import main

main()
