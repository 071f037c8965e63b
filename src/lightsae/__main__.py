"""`python -m lightsae` is `lightsae`."""

from lightsae.cli import main

main()
