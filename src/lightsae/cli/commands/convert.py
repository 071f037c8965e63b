"""`lightsae convert X --to LAYOUT --out DIR`: an SAE as files of another library, or as lightsae's own."""

from collections.abc import Sequence

from lightsae.cli.settings.plain_parser import PlainParser
from lightsae.errors import under


def run_convert(args: Sequence[str]) -> int:
    """Write the files, read them again, and print what was folded and how far the two SAEs lie apart."""
    parser = PlainParser(
        "convert",
        "PATH --to LAYOUT --out DIR [OPTIONS]",
        "Write an SAE as files of another library, or as lightsae's own (native). Scales and centres are folded into "
        "the weights exactly. The files are read again and held against the SAE on random inputs. An SAE that the "
        "layout has no form for (several sites, second_step, prune) is refused.",
        "lightsae convert lightning_logs/version_0 --to native --out my_sae",
    )
    parser.add_argument("path", metavar="PATH", help="the SAE: what `lightsae open` opens")
    parser.add_argument("--to", metavar="LAYOUT", required=True, help="native, or the name of another library's layout")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder, or an earlier export of this kind")
    parser.add_names()
    options = parser.parse_args(args)
    # Here and not above: --help answers before PyTorch is imported.
    from lightsae.cli.tables import print_paths
    from lightsae.formats.convert import convert
    from lightsae.formats.saved_sae import SavedSAE

    with under(folder="path"):
        saved = SavedSAE.open(options.path).named(options.model, options.site, options.target_site)
    done = convert(saved, options.to, options.out)
    found = done.difference
    print_paths((options.to, done.path))
    print(f"folded: {'; '.join(done.folded) or 'nothing'}")
    print(f"read again, on {found.tokens} random inputs:")
    print(f"  latents differ by at most {found.latents:.1e} of the largest, {found.other_firings:,} fire elsewhere")
    print(f"  predictions differ by at most {found.predictions:.1e} of the largest")
    if saved.unknown:
        names = " ".join(f"--data.{name} {name.upper()}" for name in saved.unknown)
        print(f"not known, and not written: {', '.join(saved.unknown)}; name them: {names}")
    return 0
