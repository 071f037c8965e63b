"""`lightsae predict`: the sparse activations of a text, as Parquet or as the cache of Delphi."""

from pathlib import Path
from typing import Literal

from lightsae.analysis.interpret.delphi import write_delphi_cache
from lightsae.analysis.interpret.predict import predict
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.cli.settings.command import Bars, check_file, command
from lightsae.errors import ConfigError
from lightsae.formats.files import shown

_EXAMPLES = (
    "lightsae predict --sae lightning_logs/version_0/sae --out firings.parquet --tokens 100000",
    "lightsae predict --sae sae --out firings.parquet --dataset my_texts/ --split train",
    "lightsae predict --sae sae --out latents --layout delphi",
)


@command("--sae DIR --out FILE.parquet [OPTIONS]", _EXAMPLES)
def run_predict(
    sae: str,
    out: str,
    text: TextSettings,
    split: Literal["train", "validation"] = "validation",
    tokens: int = 1_000_000,
    everything: bool = False,
    layout: Literal["parquet", "delphi"] = "parquet",
    splits: int = 5,
) -> None:
    """Write every firing of an SAE's latents on a text: document, row, position, token, latent, value.

    Model and corpus are those of the training, unless you say otherwise.

    Args:
        sae: The SAE: a run's folder, an export, a checkpoint, or files of another library.
        out: File to write, ending in .parquet; of delphi a folder.
        text: What differs from the training.
        split: Part of the corpus to read.
        tokens: How many tokens to read.
        everything: Keep attention sinks and special tokens too.
        layout: parquet, or delphi: the latent cache that Delphi explains latents from.
        splits: Files of a delphi cache; the latents are dealt to them.
    """
    if layout == "delphi":
        if Path(out).is_file() or Path(out).suffix == ".parquet":
            raise ConfigError("out", out, "name a folder")
    else:
        check_file("out", out, ".parquet")
    if tokens < 1:
        raise ConfigError("tokens", tokens, "write 1 or more")
    loaded, path = LoadedSAE.load(sae, text, whole_model=False), Path(out)
    if layout == "delphi":
        written = write_delphi_cache(loaded, path, split, tokens, everything, Bars(), splits)
    else:
        written = predict(loaded, path, split, tokens, everything, Bars())
    print(f"{written:,} firings  {shown(Path(out))}")
