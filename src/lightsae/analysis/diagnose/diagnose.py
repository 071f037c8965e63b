"""The diagnosis of one SAE: its sample, the hypotheses, each one's figures, the verdict."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from lightsae.analysis.diagnose.case import Case, score
from lightsae.analysis.diagnose.hypotheses import try_all
from lightsae.analysis.diagnose.report import Diagnosis, Tried
from lightsae.analysis.diagnose.sample import read_sample
from lightsae.analysis.diagnose.sites import near_sites
from lightsae.analysis.diagnose.verdict import judge
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings, on_some_text, open_sae, within_context
from lightsae.errors import ConfigError, FormatError, arg, under
from lightsae.formats.layouts import PortableSAE
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel
from lightsae.progress import NullProgress, Progress

_SAY_L0 = "thresholds that are off may not show in these figures; give l0, where the publisher says it, and they do"


@dataclass(frozen=True)
class DiagnoseSettings:
    """What is measured.

    Args:
        tokens: Held-out tokens that the hypotheses are held against each other on.
        other_model: A second language model that the SAE could be of, such as the instruct model beside the base
            model; null: none.
        l0: Latents per token as the publisher says, where the file does not; null: what the file says, if it does.
            Thresholds that are off may cost little in reconstruction; this tells that they are.

    Raises:
        ConfigError: There are too few tokens, or no such number of latents.
    """

    tokens: int = 4096
    other_model: str | None = None
    l0: float | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError("tokens", self.tokens, "write 1 or more")
        if self.l0 is not None and not 0 < self.l0 < math.inf:
            raise ConfigError("l0", self.l0, "write a number above 0, or null")


def diagnose(
    sae: SavedSAE | str | Path,
    text: TextSettings | None = None,
    settings: DiagnoseSettings | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Search for the reason why an SAE reconstructs badly.

    Args:
        sae: It, or its folder or file, of any layout.
        text: Model, sites and text, where they differ from what the file says. A file that says no text: `builtin`.
        settings: What is measured.
        progress: Who is told.

    Raises:
        FormatError, ModelError, SiteError: As `LoadedSAE.load`.
        ConfigError: As there; or the SAE reads several sites, or encodes twice or prunes.
        CorpusError: The text has no held-out rows.
    """
    text, settings, progress = text or TextSettings(), settings or DiagnoseSettings(), progress or NullProgress()
    saved = open_sae(sae, text)
    portable = _with_l0(_portable(saved, str(sae)), settings.l0)
    text, shortened = within_context(on_some_text(text, saved), saved)
    loaded = LoadedSAE.load(saved, text)
    near = near_sites(loaded)
    sample = read_sample(loaded, near, settings.tokens, _other_model(settings, text, loaded), progress)
    (read,), (predicted,) = loaded.sae.widths.read, loaded.sae.widths.predicted
    case = Case.of(portable, read, predicted)
    said = score(case, sample)
    if said is None:
        raise FormatError(f"{str(sae)!r} predicts no numbers on this text, or the text has no spread.")
    tried = try_all(case, said, sample, near, settings.other_model, progress)
    verdict = judge(said, tried, saved.source.sees_bos)
    if verdict.cause is None and portable.activation == "jumprelu" and case.l0 is None:
        verdict = replace(verdict, mend=_SAY_L0)
    return Diagnosis(
        name=str(sae),
        sae=saved.entry,
        text={
            "model": loaded.main_model.name,
            "tokens": len(next(iter(sample.values())).seen),
            **loaded.corpus_entry(),
        },
        said=said,
        tried=tuple(Tried.of(alternative, its) for alternative, its in tried),
        verdict=verdict,
        published={name: float(value) for name, value in portable.source.published},
        notes=() if shortened is None else (shortened,),
    )


def _portable(saved: SavedSAE, name: str) -> PortableSAE:
    """Return the SAE in the terms of the layouts, as the file has it."""
    if isinstance(saved.opened, PortableSAE):
        return saved.opened
    sae = saved.sae
    if len(sae.widths.read) > 1 or len(sae.widths.predicted) > 1:
        raise ConfigError(f"{arg('sae')} is {name!r}, which reads several sites; give an SAE or a transcoder of one.")
    if used := [name for name in ("second_step", "prune") if getattr(sae.refinements, name)]:
        raise ConfigError(f"{arg('sae')} is {name!r}, which has {used[0]}; give one without it.")
    return PortableSAE.of(sae, saved.source)


def _with_l0(sae: PortableSAE, l0: float | None) -> PortableSAE:
    """Return the SAE with what the user knows of its publisher."""
    if l0 is None:
        return sae
    published = {**dict(sae.source.published), "l0": l0}
    return replace(sae, source=replace(sae.source, published=tuple(published.items())))


def _other_model(settings: DiagnoseSettings, text: TextSettings, loaded: LoadedSAE) -> LanguageModel | None:
    if settings.other_model is None:
        return None
    with under(name_or_path="other_model"):
        return LanguageModel.from_pretrained(
            settings.other_model,
            dtype=loaded.main_model.dtype,
            trust_remote_code=text.trust_remote_code,
            **text.placement(loaded.saved.provenance.quantization),
        )
