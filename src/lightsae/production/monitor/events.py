"""What a monitor tells: a feature fired on a token; a feature's frequency left its band, or came back.

Values are in the SAE's normalised units.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Firing:
    """A feature exceeded its threshold on a token.

    Attributes:
        time: When the pass was read, in seconds since 1970.
        feature: Which.
        label: What the feature dictionary calls it; None without a label.
        value: Its activation.
        of_max: The same in units of its maximum in the feature dictionary; None where it never fired there.
        threshold: What it exceeded.
        token: Id of the token; -1 where the model was given embeddings.
        token_text: What the token says; None without a tokenizer.
        row: Row of the batch. Beams change places between rows.
        position: In the row, counted from its first real token, 0.
        phase: `prompt` or `generated`.
        text: Running number of the text, over all batches.
        request: The id that the user gave, or None.
        role: Whose words the token is; None where the monitor was given no conversation.
    """

    time: float
    feature: int
    label: str | None
    value: float
    of_max: float | None
    threshold: float
    token: int
    token_text: str | None
    row: int
    position: int
    phase: str
    text: int
    request: str | None
    role: str | None = None


@dataclass(frozen=True)
class Alarm:
    """The frequency of a feature, over the last tokens, left its band or came back into it.

    Attributes:
        time: When it was seen, in seconds since 1970.
        feature: Which.
        label: What the feature dictionary calls it; None without a label.
        state: `left` or `returned`.
        side: `above` or `below`: on which side of the band it is, or was.
        frequency: Share of the window's tokens on which the feature is active.
        low, high: The band for this window.
        expected: Its frequency on the calibration text.
        tokens, texts: In the window.
        roles: Those whose tokens are watched; None: all tokens.
    """

    time: float
    feature: int
    label: str | None
    state: str
    side: str
    frequency: float
    low: float
    high: float
    expected: float
    tokens: int
    texts: int
    roles: list[str] | None = None


Event = Firing | Alarm


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as JSON values, its kind first (`firing`, `alarm`), its time in ISO 8601."""
    moment = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds")
    return {"event": type(event).__name__.lower(), **asdict(event), "time": moment}
