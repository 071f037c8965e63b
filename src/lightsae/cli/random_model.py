"""The control `random_model` of an evaluation: the run's recipe, trained on its language model with random weights.

Source: Heap et al. 2025, arXiv:2501.17727.
"""

from dataclasses import replace
from pathlib import Path

from lightsae.analysis.evaluate import EvaluateSettings, Evaluation, evaluate
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.pipeline.runs import run_command
from lightsae.errors import ConfigError, FormatError, arg
from lightsae.formats.files import find_folder, shown
from lightsae.formats.native import DESCRIPTION
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm.random_weights import split_name
from lightsae.parsing import read_yaml
from lightsae.progress import Progress

RANDOM_MODEL = "random_model"
_CONFIG, _EXPORTS, _CHECKPOINTS = "config.yaml", "sae", "checkpoints"


class Recipe:
    """How an SAE was trained, and how the same is done on random weights.

    The run that does it lies in the SAE's own: RUN/random_model. One that is finished is not trained again.

    Args:
        sae: As the user wrote it.
        model: The language model, if the one of the training has another name here.

    Raises:
        ConfigError: It lies in no run's folder, its language model has random weights already, or there are several.
        FormatError: There is no such SAE, or its run's configuration is damaged.
    """

    def __init__(self, sae: str, model: str | None) -> None:
        saved = SavedSAE.open(sae)
        where = Path(saved.folder or sae)
        run = next((folder for folder in where.parents if _is_run_of(folder, where)), None)
        why = f"{arg('controls')} has {RANDOM_MODEL!r}, but {sae!r}"
        if run is None:
            raise ConfigError(f"{why} lies in no run's folder: its recipe is not known; leave {RANDOM_MODEL} out.")
        trained_on = model or saved.provenance.model or ""
        if split_name(trained_on)[1] is not None:
            raise ConfigError(f"{why} was trained on {trained_on!r}, whose weights are random already.")
        if _data(run).get("more_models"):
            raise ConfigError(f"{why} reads several language models; leave {RANDOM_MODEL} out.")
        self.run, self.model = run, f"{trained_on}@random"
        # RUN/sae, RUN/checkpoints/last.ckpt; of a run with several SAEs with the name behind it.
        inside = where.relative_to(run).parts
        self.name = Path(*inside[1 if inside[0] == _EXPORTS else 2 :])
        self.tokens_seen = saved.provenance.values.get("tokens_seen")

    @property
    def trained(self) -> str | None:
        """The SAE on random weights; None: it is not trained, or not to the end."""
        for run in sorted((self.run / RANDOM_MODEL).glob("lightning_logs/version_*"), reverse=True):
            export = run / _EXPORTS / self.name
            if ((there := find_folder(export)) is not None) and (there / DESCRIPTION).is_file():
                saved = SavedSAE.open(export)
                if saved.provenance.values.get("tokens_seen") == self.tokens_seen:
                    return str(export)
        return None

    def train(self) -> str:
        """Train it, as the run was trained but for the language model; return where it lies.

        Raises:
            ConfigError: The training failed; what it said stands above.
        """
        out = self.run / RANDOM_MODEL
        command = ["fit", "--config", str(self.run / _CONFIG), "--data.model", self.model]
        # Random weights are not rounded.
        command += ["--data.quantization", "null"] if _data(self.run).get("quantization") else []
        command += ["--trainer.default_root_dir", str(out)]
        print(f"{RANDOM_MODEL}: lightsae {' '.join(command)}", flush=True)
        if run_command(command) or (trained := self.trained) is None:
            raise ConfigError(f"{arg('controls')} has {RANDOM_MODEL!r}, whose training did not end well; see above.")
        return trained


def _is_run_of(folder: Path, sae: Path) -> bool:
    """Return whether a folder is that of a run, and an SAE is what the run trained."""
    return (folder / _CONFIG).is_file() and sae.relative_to(folder).parts[0] in (_EXPORTS, _CHECKPOINTS)


def _data(run: Path) -> dict[str, object]:
    """Return the settings of `data:` of a run."""
    try:
        config = read_yaml(run / _CONFIG)
    except ValueError as error:
        raise FormatError(f"{shown(run / _CONFIG)!r} is no configuration ({error}).") from error
    data = config.get("data") if isinstance(config, dict) else None
    return data if isinstance(data, dict) else {}


def beside_random_model(
    evaluation: Evaluation, recipe: Recipe, text: TextSettings, settings: EvaluateSettings, progress: Progress
) -> Evaluation:
    """Return an evaluation with the figures of the same recipe on random weights beside it, on the same text."""
    trained = recipe.trained or recipe.train()
    own_text = replace(text, model=None if text.model is None else recipe.model, quantization=None)
    control = evaluate(trained, own_text, replace(settings, controls=()), progress)
    return replace(evaluation, controls={**evaluation.controls, RANDOM_MODEL: control.figures})
