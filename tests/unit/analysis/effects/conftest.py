"""Tiny random models of every architecture: those of the language model's own tests, loaded from their conftest."""

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[2] / "lm" / "conftest.py"
_spec = importlib.util.spec_from_file_location("lm_models", _PATH)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

architectures, tiny, tiny_folder = _module.architectures, _module.tiny, _module.tiny_folder
