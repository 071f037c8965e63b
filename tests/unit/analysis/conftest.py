"""Lets the tests of this folder write `from fake_dictionary import fake_tables, fake_manifest`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
