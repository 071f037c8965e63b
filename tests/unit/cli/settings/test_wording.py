"""jsonargparse's messages in one line of the user's terms, also those that this project has not met yet."""

from collections.abc import Mapping
from typing import Literal

import pytest
from lightning.pytorch import Callback

from lightsae.cli.settings.wording import SETTING, in_short, names_of_classes

KEYS = ["data.site", "data.batch_tokens", "trainer.max_steps", "model.lr", "model.sae.k"]
CLASSES = {"model.sae": ["ReLU", "TopK"], "trainer.callbacks": [f"Callback{i}" for i in range(19)]}

UNION = """Parser key "data.seed":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: x"""
LITERAL = "Parser key \"data.dtype\":\n  Expected a typing.Literal['auto', 'float32']. Got value: float"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Unrecognized arguments: --data.sight x", "--data.sight is not an option. Did you mean '--data.site'?"),
        ("unrecognized arguments: --max_steps=3", "--max_steps is not an option. Did you mean '--trainer.max_steps'?"),
        ("unrecognized arguments: x", "unrecognized arguments: x"),
        (
            "Subcommand 'fit' does not accept option 'data.batch_token'",
            "data.batch_token is not a setting. Did you mean 'data.batch_tokens'?",
        ),
        ("Subcommand 'fit' does not accept option 'zzz'", "zzz is not a setting."),
        (
            "argument -c/--config: expected one argument",
            "argument -c/--config: expected one argument",
        ),
        ("the following arguments are required: fit.data.site", "data.site is missing."),
        (UNION, "data.seed is 'x'; write a whole number or null."),
        (LITERAL, "data.dtype is 'float'; write auto or float32."),
        (
            'Parser key "model.sae":\n  Expected a dot import path string: Topk',
            "model.sae is 'Topk', which is not known. Did you mean 'TopK'? Known: ReLU, TopK.",
        ),
        (
            'Parser key "model.sae":\n  Import path torch.Tensor does not correspond to a subclass of it',
            "model.sae is 'torch.Tensor', which is not known. Known: ReLU, TopK.",
        ),
        (
            'Parser key "trainer.callbacks":\n  Expected a dot import path string: Zzz',
            "trainer.callbacks is 'Zzz', which is not known. Write its import path.",
        ),
        (
            f'Parser key "model.sae":\n  - {SETTING}k is missing; TopK needs it.{SETTING}. Got value: Namespace()',
            "model.sae.k is missing; TopK needs it.",
        ),
        ("\x1b[31mA message\x1b[0m\n  - of a later\n  - version", "A message of a later version"),
        ('Parser key "data.x": Something else\n  entirely', "data.x: Something else entirely"),
    ],
)
def test_in_short(message: str, expected: str) -> None:
    assert in_short(message, KEYS, CLASSES) == expected


def test_a_long_message_is_cut() -> None:
    assert len(in_short("word " * 1000, KEYS, CLASSES)) < 420
    value = "[" + "1, " * 1000 + "1]"
    assert len(in_short(f"Parser key \"a\":\n  Expected a <class 'int'>. Got value: {value}", KEYS, CLASSES)) < 200


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Option 'kk' is not accepted", "kk: TopK has no such setting; it has d_sae, k. Did you mean 'k'?"),
        ("the following arguments are required: k", "k is missing; TopK needs it."),
        ("Parser key \"k\":\n  Expected a <class 'int'>. Got value: x", "k is 'x'; write a whole number."),
    ],
)
def test_in_short_of_class(message: str, expected: str) -> None:
    marked = in_short(message, ["d_sae", "k"], {}, owner="TopK")
    assert marked == f"{SETTING}{expected}{SETTING}"
    # A class inside a class: what the inner one said stays as it is.
    assert in_short(f"outer {marked}", [], {}, owner="Outer") == f"outer {marked}"


def test_names_of_classes() -> None:
    class Mine(Callback):
        pass

    class Later(Mine):
        pass

    for hint in (Callback, list[Callback] | Callback | None, Mapping[str, Callback]):
        assert {"Mine", "Later"} <= set(names_of_classes(hint))
    for hint in (int, int | None, list[int], Literal["a", "b"], str):
        assert names_of_classes(hint) == []
