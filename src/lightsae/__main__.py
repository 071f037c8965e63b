"""`python -m lightsae` is `lightsae`."""

import os
import sys

# As for `lightsae` itself, what lies in the working folder is no library.
if sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from lightsae.cli import main

main()
