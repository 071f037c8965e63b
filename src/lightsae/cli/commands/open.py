"""`lightsae open PATH`: what an SAE's file or folder is, and what is known of the SAE."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightsae.cli.settings.plain_parser import PlainParser
from lightsae.errors import LightsaeError, under

if TYPE_CHECKING:
    from lightsae.analysis.evaluate import Evaluation
    from lightsae.formats.saved_sae import SavedSAE

_WIDTH = 11
# What is measured, on how many tokens.
_TOKENS = 20_000
_MEASURED = ("fve", "fve_no_sinks", "l0", "ce_recovered")
# Below this, or so far below what the publisher says, an FVE is poor.
_POOR, _BELOW = 0.5, 0.05


def run_open(args: Sequence[str]) -> int:
    """Print which layout a path is of, why it is none of the others, and what the SAE in it is."""
    parser = PlainParser(
        "open",
        "PATH [OPTIONS]",
        "Open an SAE: an export or a run of lightsae, a training checkpoint, or files of another library. Prints which "
        "layout it is and why it is none of the others, the model and the sites as far as they are known, and what was "
        "folded into the weights. Where the model is at hand, or named, it is checked: reconstruction, sparsity and "
        "what splicing costs, beside what the publisher says. Ends with exit code 2 where no layout knows it.",
        "lightsae open gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
    )
    parser.add_argument("path", metavar="PATH", help="a file or folder; of a run its folder, or a .ckpt file")
    parser.add_names()
    parser.add_argument(
        "--check",
        choices=("true", "false"),
        default="true",
        help=f"true: measure on {_TOKENS:,} tokens, with a model that is here or that --data.model names; false: not",
    )
    parser.add_argument(
        "--data.dataset",
        "--dataset",
        dest="dataset",
        metavar="TEXT",
        help="text to check it on; left out: that of the training where it is on this machine, or else `builtin`",
    )
    options = parser.parse_args(args)
    # Here and not above: --help answers before PyTorch is imported.
    from lightsae.formats.saved_sae import SavedSAE

    try:
        with under(folder="path"):
            saved = SavedSAE.open(options.path).named(options.model, options.site, options.target_site)
            _ = saved.sae  # of an export, the tensors are read here
    except LightsaeError:
        if Path(options.path).exists():
            _print_verdicts(options.path)
        raise
    for name, value in _told(saved):
        print(f"{name:<{_WIDTH}}{value}")
    print()
    _print_verdicts(options.path if Path(options.path).exists() else str(saved.folder))
    if saved.unknown and not saved.can_be_named:
        missing = ", ".join(saved.unknown)
        print(f"\nNot known: {missing}. Several sites cannot be named: commands that read text refuse it.")
    elif saved.unknown:
        names = " ".join(f"--data.{name} {name.upper()}" for name in saved.unknown)
        print(f"\nNot known: {', '.join(saved.unknown)}. Commands that read text take them: --sae {saved} {names}")
    elif options.check == "true":
        print()
        _check(saved, options.model, options.dataset)
    return 0


def _check(saved: "SavedSAE", model: str | None, dataset: str | None) -> None:
    """Measure an SAE whose model is at hand, or say in a line why not."""
    from lightsae.analysis.evaluate import EvaluateSettings, evaluate
    from lightsae.analysis.reading.loaded_sae import TextSettings, on_text_at_hand, within_context
    from lightsae.cli.settings.command import Bars
    from lightsae.lm.config import is_at_hand

    source = saved.source
    if model is None and not is_at_hand(source.model or "", source.model_revision):
        print(f"not checked: the model {source.model!r} is not on this machine; name one by --data.model MODEL")
        return
    settings = EvaluateSettings(_TOKENS, _TOKENS, controls=(), concepts="none")
    try:
        with under(name_or_path="model", revision="model_revision"):
            text, shortened = within_context(on_text_at_hand(TextSettings(model=model, dataset=dataset), saved), saved)
            found = evaluate(saved, text, settings, Bars())
    except LightsaeError as error:
        print(f"not checked: {' '.join(error.as_typed().split())}")
        return
    if shortened is not None:
        print(shortened)
    _print_check(found, dict(source.published), saved)


def _print_check(found: "Evaluation", published: dict[str, float], saved: "SavedSAE") -> None:
    from lightsae.cli.tables import console, table

    rows = table(f"on {found.text['tokens']:,} tokens of {found.text['dataset']}", "measured", "published")
    for name in _MEASURED:
        if name in found.figures:
            said = f"{published[name]:.4g}" if name in published else "not said"
            rows.add_row(name, str(found.figures[name]), said)
    console().print(rows, highlight=False)
    fve = found.figures["fve_no_sinks"].value
    if not fve >= _POOR or found.figures["fve"].value < published.get("fve", 0.0) - _BELOW:
        print(f"Poor: what the reason is, lightsae diagnose --sae {saved} searches for.")


def _print_verdicts(path: str) -> None:
    from rich.markup import escape

    from lightsae.cli.tables import console, table
    from lightsae.formats.recognised import recognise

    rows = table("layout", "it is not that, because", words=(0, 1))
    taken = False
    for name, problem in recognise(path).items():
        # What stands in a run's folder may look like more than one kind; the first one is opened.
        rows.add_row(name, escape(problem or ("(it is)" if not taken else "another one comes first")))
        taken = taken or problem is None
    console().print(rows, highlight=False)


def _told(saved: "SavedSAE") -> Iterator[tuple[str, str]]:
    """Give what is known of an SAE, a line each."""
    from lightsae.formats.layouts import LAYOUTS

    source, sae, told = saved.source, saved.sae, saved.provenance.values
    yield "layout", LAYOUTS[source.layout].label if source.layout in LAYOUTS else "lightsae"
    if saved.folder is not None:
        yield "path", str(saved.folder)
    mechanism = type(sae.mechanism).__name__
    k = sae.mechanism.settings.get("k")
    kind = saved.variant if saved.variant == mechanism else f"{saved.variant} over {mechanism}"
    yield "variant", kind + ("" if k is None else f", k {k}") + f", {sae.d_sae:,} latents"
    for side in ("read", "predicted") if saved.widths["read"] != saved.widths["predicted"] else ("read",):
        sites = ", ".join(f"{ref} (width {width})" for ref, width in getattr(sae.widths, side).items())
        yield {"read": "reads", "predicted": "predicts"}[side], sites
    yield "model", _known(source.model, saved.provenance.revision)
    yield "context", "not known" if source.context_size is None else f"{source.context_size} tokens"
    yield "BOS", {None: "not known", True: "seen in training", False: "left out of training"}[source.sees_bos]
    yield "text", source.dataset or "not known"
    if source.published:
        yield "published", ", ".join(f"{name} {value:g}" for name, value in source.published)
    if source.address:
        yield "fetched", source.address
    yield (
        "folded",
        "; ".join(map(str, folded)) if isinstance(folded := told.get("folded"), list) and folded else "nothing",
    )
    yield "SHA-256", saved.sha256[:12]


def _known(value: str | None, revision: str | None) -> str:
    return "not known" if value is None else value + (f" at {revision}" if revision else "")
