"""``python -m ssmquant`` is the command line."""

from ssmquant.cli.main import main

main()
