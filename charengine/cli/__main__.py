"""`python -m charengine.cli`."""

from charengine.cli.main import main

main()
