"""`lightsae sites MODEL`: where activations can be read."""

from collections.abc import Sequence

from lightsae.cli.settings.plain_parser import PlainParser
from lightsae.errors import under


def run_sites(args: Sequence[str]) -> int:
    """Print every portable site of a model with its width and the module behind it."""
    parser = PlainParser(
        "sites",
        "MODEL [OPTIONS]",
        "List the sites of a language model: the name that --data.site takes, the width, and the module "
        "behind it. Any other module works too: its path with .input or .output appended.",
        "lightsae sites openai-community/gpt2",
    )
    parser.add_argument("model", metavar="MODEL", help="a Hub name, a local folder, or `builtin`")
    parser.add_argument("--revision", metavar="TEXT", help="revision of a Hub model: a branch, tag or commit")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that a Hub model brings along")
    options = parser.parse_args(args)
    # Here and not above: --help answers before PyTorch is imported.
    from lightsae.cli.tables import console, table
    from lightsae.lm import describe

    with under(name_or_path="the model's name"):
        model = describe(options.model, revision=options.revision, trust_remote_code=options.trust_remote_code)
    rows = table("site", "width", "module", words=(0, 2))
    for site in model.sites():
        rows.add_row(site.name, str(site.width), f"{site.path}.{site.side}")
    console().print(rows if rows.rows else "No portable names are known for this architecture: use module paths.")
    print(f"{model.n_layers} layers; rows of at most {model.max_context or 'any number of'} tokens")
    return 0
