"""Settings of the data held against each other, before anything is loaded."""

from typing import TYPE_CHECKING

from lightsae.errors import ConfigError, arg, did_you_mean
from lightsae.sae import NORMALISATIONS

if TYPE_CHECKING:
    from lightsae.activations.datamodule import ActivationDataModule


def check_numbers(data: "ActivationDataModule", dtypes: tuple[str, ...]) -> None:
    """Raise a ConfigError where a setting cannot work.

    Args:
        data: Its settings are what is checked.
        dtypes: Names that `data.dtype` may have.
    """
    for key in ("batch_tokens", "buffer_tokens", "val_tokens", "context_size", "model_batch_tokens"):
        if getattr(data, key) < 1:
            raise ConfigError(key, getattr(data, key), "write 1 or more")
    from_text = data.activations is None and data.dataset != "synthetic"
    if from_text and data.context_size < 2:
        raise ConfigError("context_size", data.context_size, "write 2 or more")
    if data.buffer_tokens < data.batch_tokens:
        raise ConfigError(
            f"{arg('buffer_tokens')} is {data.buffer_tokens}, less than {arg('batch_tokens')} ({data.batch_tokens}); "
            f"write {data.batch_tokens} or more, better {32 * data.batch_tokens}."
        )
    if from_text and data.buffer_tokens < data.context_size:
        raise ConfigError(
            f"{arg('buffer_tokens')} is {data.buffer_tokens}, less than one row of {arg('context_size')} "
            f"({data.context_size}); write {32 * data.context_size} or more."
        )
    if not 0 < data.validation_fraction < 1:
        raise ConfigError("validation_fraction", data.validation_fraction, "write a share such as 0.05")
    if data.training_tokens is not None and data.training_tokens < data.batch_tokens:
        raise ConfigError(
            f"{arg('training_tokens')} is {data.training_tokens}, less than one batch of {arg('batch_tokens')} "
            f"({data.batch_tokens})."
        )
    for key, known in (("normalisation", NORMALISATIONS), ("dtype", dtypes)):
        if (found := getattr(data, key)) not in known:
            hint = did_you_mean(str(found), known)
            raise ConfigError(f"{arg(key)} is {found!r}; known are {', '.join(known)}.{hint}")
    if not 0 <= data.skip_positions < data.context_size:
        raise ConfigError("skip_positions", data.skip_positions, f"it must lie in 0..{data.context_size - 1}")
    if data.more_models and not from_text:
        raise ConfigError(f"{arg('more_models')}: there is no text to run them over; give {arg('dataset')}.")
    for name in data.more_models:
        if not name.isidentifier():
            raise ConfigError(f"{arg('more_models')}: {name!r} is no name; write letters, digits and _ (chat: PATH).")
