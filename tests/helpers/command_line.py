"""The command line run in this process, in a folder, for fixtures of a module too."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightsae.cli import main


@contextlib.contextmanager
def lightsae_at(folder: Path) -> Iterator[Callable[..., str]]:
    """Give what runs `lightsae ARGS` in a folder, with an end of `code`; it returns what was printed, errors last."""

    def run(*args: str, code: int = 0) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), torch.random.fork_rng():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # to a user, a warning is no error
                with pytest.raises(SystemExit) as end:
                    main(args)
        assert end.value.code == code, err.getvalue()
        return out.getvalue() + (err.getvalue() if code else "")

    argv, seed = sys.argv, os.environ.get("PL_GLOBAL_SEED")
    sys.argv = ["lightsae"]
    with contextlib.chdir(folder):
        yield run
    sys.argv = argv
    os.environ.pop("PL_GLOBAL_SEED", None)
    if seed is not None:
        os.environ["PL_GLOBAL_SEED"] = seed
