"""`lightsae push`: an SAE with a model card to the Hub, or to a folder."""

from lightsae.analysis.evaluate.model_card import evaluation_of, model_card
from lightsae.cli.settings.command import command
from lightsae.cli.tables import print_paths
from lightsae.errors import under
from lightsae.formats.convert import NATIVE
from lightsae.formats.push import push, repository_of
from lightsae.formats.saved_sae import SavedSAE

_EXAMPLES = (
    "lightsae push --sae RUN/sae --to OWNER/NAME --evaluation evaluation.json --license mit",
    "lightsae push --sae RUN/sae --to ./published --evaluation evaluation.json",
)


@command("--sae SAE --to TARGET [OPTIONS]", _EXAMPLES)
def run_push(
    sae: str,
    to: str,
    evaluation: str | None = None,
    layout: str = NATIVE,
    license: str | None = None,
    private: bool = False,
) -> None:
    """Publish an SAE with a model card, on the Hugging Face Hub or in a folder.

    The files are written, read again and held against the SAE first; the Hub gets them in one commit, and a folder is
    replaced as a whole. What was trained is in them: the run's config.yaml stands in sae.json, with paths as you typed
    them.

    Args:
        sae: The SAE, of any layout that is known.
        to: OWNER/NAME or hf://OWNER/NAME of the Hub; or a folder, ./NAME.
        evaluation: Report of `lightsae evaluate` for the card; the SAE is known by its hash.
        layout: native, or a layout that convert writes.
        license: For the card, as the Hub abbreviates it: mit, apache-2.0.
        private: Make a new repository a private one.
    """
    with under(folder="sae"):
        saved = SavedSAE.open(sae)
    figures = evaluation_of(saved, evaluation) if evaluation is not None else None
    repository = repository_of(to)
    address = f"hf://{repository}" if repository else to
    pushed = push(saved, to, model_card(saved, address, layout, figures, license), layout, private)
    found = pushed.conversion.difference
    print_paths(("pushed", pushed.address), ("open it", f"lightsae open {pushed.address}"))
    print(f"read again before: predictions differ by at most {found.predictions:.1e} of the largest")
