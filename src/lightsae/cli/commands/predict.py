"""`lightsae predict`: the sparse activations of a text, as Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightsae.analysis.interpret.predict import predict
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.cli.settings.command import Bars, CommandParser, settings_from
from lightsae.errors import ConfigError
from lightsae.formats.files import shown

_DESCRIPTION = (
    "Write every firing of a dictionary's latents on a text: document, row, position, token, latent, value. Model and "
    "corpus are those of the training, unless you say otherwise."
)
_EXAMPLES = (
    "lightsae predict --sae lightning_logs/version_0/sae --out firings.parquet --tokens 100000",
    "lightsae predict --sae sae --out firings.parquet --dataset my_texts/ --split train",
)


def run_predict(args: Sequence[str]) -> int:
    """Write the file, say how much is in it."""
    parser = CommandParser("predict", "--sae DIR --out FILE.parquet [OPTIONS]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("-c", "--config", action="config", help="Settings from a YAML file; options win over it.")
    parser.add_argument("--sae", type=str, required=True, help="A dictionary: a run's sae/ folder, or an exported one.")
    parser.add_argument("--out", type=str, required=True, help="File to write, ending in .parquet.")
    parser.add_argument("--split", type=Literal["train", "validation"], default="validation", help="Of the corpus.")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="How many to read.")
    parser.add_argument("--everything", type=bool, default=False, help="Keep sinks and special tokens too.")
    parser.add_class_arguments(TextSettings)
    given = parser.parse_args(list(args))
    out = Path(given.out)
    if out.suffix != ".parquet" or out.is_dir():
        raise ConfigError(f"out is {given.out!r}; name a file that ends in .parquet.")
    if given.tokens < 1:
        raise ConfigError(f"tokens is {given.tokens}; write 1 or more.")
    settings = settings_from(TextSettings, given)
    loaded = LoadedSAE.load(given.sae, settings, whole_model=False)
    written = predict(loaded, out, given.split, given.tokens, given.everything, Bars())
    print(f"{written:,} firings  {shown(out)}")
    return 0
