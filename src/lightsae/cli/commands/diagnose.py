"""`lightsae diagnose`: why an SAE reconstructs badly."""

from pathlib import Path

from lightsae.analysis.diagnose import DiagnoseSettings, Diagnosis, diagnose
from lightsae.analysis.diagnose.case import CAUSES, Score
from lightsae.analysis.diagnose.report import write_report
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.settings.command import Bars, check_file, command
from lightsae.cli.tables import console, print_paths, table

_EXAMPLES = (
    "lightsae diagnose --sae params.npz --data.model google/gemma-2-2b --data.site resid_post.20",
    "lightsae diagnose --sae sae --data.model Qwen/Qwen3-1.7B-Base --other_model Qwen/Qwen3-1.7B --out diagnosis.json",
)


@command("--sae SAE [--data.model MODEL] [OPTIONS]", _EXAMPLES)
def run_diagnose(sae: str, settings: DiagnoseSettings, text: TextSettings, out: str | None = None) -> None:
    """Search for the reason why an SAE reconstructs badly.

    The mistakes that people make with SAEs of others are tried one by one on the same activations: another site, a norm
    too many or too few, a scale, b_dec, axes, thresholds, the choice of latents, BOS, the other model. It says which
    one explains the data, or that none does.

    Args:
        sae: The SAE, of any layout that is known.
        settings: What is tried.
        text: Model, site and text, where the file does not say them.
        out: File for the report, ending in .json. Null: it is printed only.
    """
    check_file("out", out, ".json")
    found = diagnose(sae, text, settings, Bars())
    _print(found)
    if out is not None:
        write_report(found, Path(out))
        print_paths(("report", Path(out)))


def _print(found: Diagnosis) -> None:
    print(f"{found.name}: {found.text['tokens']:,} tokens of {found.text['dataset']}, read by {found.text['model']}")
    for note in found.notes:
        print(note)
    rows = table("cause", "what is supposed", "error", "bias", "FVE", "no sinks", "L0", "dead", words=(0, 1))
    rows.add_row("", "as the file has it", *_figures(found.said))
    for one in found.tried:
        rows.add_row(one.cause, one.what, *_figures(one.score))
    console(140).print(rows, highlight=False, markup=False)
    if found.published:
        said = ", ".join(f"{name} {value:.4g}" for name, value in found.published.items())
        print(f"published: {said}")
    verdict = found.verdict
    if verdict.cause is None:
        print(f"no cause found: {verdict.what}")
        if verdict.mend:
            print(verdict.mend)
        return
    print(f"cause: {verdict.cause}: {CAUSES[verdict.cause]}")
    print(f"here: {verdict.what}")
    print(f"mend: {verdict.mend}")
    if verdict.as_good:
        print(f"as good an explanation: {', '.join(verdict.as_good)}")


def _figures(score: Score) -> tuple[str, ...]:
    return (
        f"{score.error:.4f}",
        f"{score.bias:.4f}",
        f"{score.fve:.4f}",
        f"{score.fve_no_sinks:.4f}",
        f"{score.l0:.1f}",
        f"{score.dead:.1%}",
    )
