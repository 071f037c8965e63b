"""What `steer` and `panel` load: the model, the SAE, the feature dictionary that belongs to it."""

from pathlib import Path

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.panels.arms import Steered
from lightsae.analysis.reading.compatibility import choose_site
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings, open_sae
from lightsae.analysis.steering.steer import mean_norm_of
from lightsae.errors import ConfigError, arg
from lightsae.formats.files import find_folder, shown
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm.passes import Positions


def load_steered(
    sae: str,
    dictionary: str | None,
    text: TextSettings,
    *,
    positions: Positions = "all",
    required: bool = False,
) -> tuple[Steered, LoadedSAE]:
    """Load a model to be steered.

    Args:
        sae: The SAE; see `SavedSAE.open`.
        dictionary: Folder of its feature dictionary; None: `dictionary` beside the SAE's folder, if there is one.
        text: What differs from the training.
        positions: Which tokens are steered.
        required: Whether nothing can be done without a feature dictionary.

    Raises:
        ConfigError: A feature dictionary is needed, and there is none.
        FormatError: A folder is damaged, or the feature dictionary belongs to another SAE.
    """
    saved = open_sae(sae, text)
    folder = dictionary or _beside(saved)
    if folder is None and required:
        raise ConfigError(
            f"{arg('dictionary')} is missing, and there is none beside {sae!r}; make one: lightsae interpret --sae "
            f"{sae} --out {shown(Path(sae).parent / 'dictionary')}"
        )
    opened = None if folder is None else FeatureDictionary.of(folder)
    if opened is not None:
        saved = opened.named(saved)
        opened.check_belongs_to(saved)
    loaded = LoadedSAE.load(saved, text)
    norm = None
    if len(loaded.sae.widths.predicted) == 1:
        # If no feature dictionary says it, what the SAE was trained with does.
        norm = mean_norm_of(opened, loaded.sae, choose_site(loaded.sae, None), loaded.saved.provenance)
    other = text.model is not None
    steered = Steered(loaded.main_model, loaded.sae, opened, positions, any_model=other, mean_norm=norm)
    return steered, loaded


def _beside(sae: SavedSAE) -> str | None:
    beside = Path(str(sae.folder)).parent / "dictionary"
    return str(beside) if find_folder(beside) and (beside / "dictionary.json").is_file() else None
