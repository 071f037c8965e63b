"""`lightsae sites MODEL`: where activations can be read."""

from collections.abc import Sequence

from lightsae.cli.settings.plain_parser import PlainParser
from lightsae.errors import under

_ROUTER = "Routers and shared experts are sites, too, by module path: {}.output"


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
        times = "" if site.scale == 1 else f" x {site.scale:g}"
        rows.add_row(site.name, str(site.width), f"{site.path}.{site.side}{times}")
    console().print(rows if rows.rows else "No portable names are known for this architecture: use module paths.")
    for absent in model.absent_sites():
        several = "layers" if len(absent.layers) > 1 else "layer"
        layers = "any layer" if len(absent.layers) == model.n_layers else f"{several} {_ranges(absent.layers)}"
        print(f"no {absent.kind} in {layers}: {absent.why}")
    routers = [path for path, module in model.model.named_modules() if "Router" in type(module).__name__]
    if rows.rows and routers:
        print(_ROUTER.format(routers[0]))
    length = f"rows of at most {model.max_context or 'any number of'} tokens"
    print(f"{model.n_layers} layers; {'reads images' if model.reads_images else length}")
    return 0


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in few words.

    >>> _ranges([0, 1, 2, 4, 6, 7])
    '0..2, 4, 6..7'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
