"""The state of a pass that was stopped: taken up as it was, or refused in one line that says what to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightsae.analysis.contexts.stage import SavedPass
from lightsae.analysis.contexts.statistics import ContextStatistics
from lightsae.errors import FormatError


class Gathered(ContextStatistics):
    """Stands for the statistics of a population."""

    def __init__(self) -> None:
        self.batches = 0
        self.counts = np.zeros(50)

    def state(self) -> dict[str, Any]:
        return {"batches": np.array(self.batches), "counts": self.counts}

    def load(self, arrays: Mapping[str, Any]) -> None:
        self.batches, self.counts = int(arrays["batches"]), np.array(arrays["counts"])


@pytest.fixture
def saved(tmp_path: Path) -> SavedPass:
    kept, gathered = SavedPass(tmp_path / "dictionary", {"seed": 0}), Gathered()
    gathered.batches, gathered.counts = 7, np.arange(50.0)
    kept.save({"sae": gathered})
    return kept


def test_a_pass_goes_on_where_it_was(saved: SavedPass) -> None:
    gathered = Gathered()
    assert saved.load({"sae": gathered}) == 7
    assert gathered.counts.tolist() == list(range(50))


def test_damage_is_one_line(saved: SavedPass) -> None:
    whole = saved.path.read_bytes()
    values = whole.index(np.arange(50.0).tobytes())
    contents = [whole[:20], b"", b"x" * 300, whole[:-30], b"\x80\x04N.", whole.replace(b"descr", b"desrc")]
    contents += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(values, values + 400, 40)]
    for content in contents:
        saved.path.write_bytes(content)
        with pytest.raises(FormatError, match=r"cannot be read .*; delete it, and the pass begins anew") as caught:
            saved.load({"sae": Gathered()})
        assert "\n" not in str(caught.value)


def test_the_state_of_other_populations_is_none(saved: SavedPass) -> None:
    with pytest.raises(FormatError, match="delete it, and the pass begins anew"):
        saved.load({"neurons": Gathered()})
