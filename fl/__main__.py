"""Entry point of `python -m fl`: the same command as `fl`."""

from fl.cli.app import main

main()
