"""A part of the inputs with every test run; many more by `python -m tests.fuzz --inputs 10000`."""

import pytest

from fuzz.drive import fuzz
from fuzz.readers import READERS

EACH = 100


@pytest.mark.parametrize("seed", [0])
def test_no_input_is_answered_by_anything_but_a_right_answer_or_a_refusal(seed: int) -> None:
    result = fuzz(list(READERS), EACH * len(READERS), seed)
    assert not result.faults, "\n\n".join(result.faults[:5])
    for name in READERS:
        right, refused = (result.counts[name, outcome] for outcome in ("right", "refused"))
        # Neither is everything refused, nor is everything taken.
        assert right > 0, name
        assert refused > 0, name
        assert right + refused == EACH
