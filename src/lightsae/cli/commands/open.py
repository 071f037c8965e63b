"""`lightsae open PATH`: what an SAE's file or folder is, and what is known of the SAE."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightsae.cli.settings.plain_parser import PlainParser
from lightsae.errors import LightsaeError, under

if TYPE_CHECKING:
    from lightsae.formats.saved_sae import SavedSAE

_WIDTH = 11


def run_open(args: Sequence[str]) -> int:
    """Print which layout a path is of, why it is none of the others, and what the SAE in it is."""
    parser = PlainParser(
        "open",
        "PATH [OPTIONS]",
        "Open an SAE: an export or a run of lightsae, a training checkpoint, or files of another library. Prints which "
        "layout it is and why it is none of the others, the model and the sites as far as they are known, and what was "
        "folded into the weights. Ends with exit code 2 where no layout knows it.",
        "lightsae open gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
    )
    parser.add_argument("path", metavar="PATH", help="a file or folder; of a run its folder, or a .ckpt file")
    parser.add_names()
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
    if saved.unknown:
        names = " ".join(f"--data.{name} {name.upper()}" for name in saved.unknown)
        print(f"\nNot known: {', '.join(saved.unknown)}. Commands that read text take them: --sae {saved} {names}")
    return 0


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
