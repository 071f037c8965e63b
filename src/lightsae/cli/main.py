"""Entry point: finds the command, and turns every mistake of the user into one short message and exit code 2."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lightsae.cli.settings.typed import check_config_files, files_first
from lightsae.errors import LightsaeError, did_you_mean
from lightsae.version import version

COMMANDS = {
    "fit": "Train a sparse autoencoder on a language model's activations; go on with a run that was stopped.",
    "cache": "Write a language model's activations to disk once, for many runs to train on at full speed.",
    "estimate": "Say what a run will take before it is begun: tokens per second, hours, memory, cost.",
    "validate": "Measure a trained one on held-out text: a table, TensorBoard, validation.json.",
    "evaluate": "Judge SAEs on held-out text: figures with their noise, beside an SAE that learned nothing.",
    "diagnose": "Search for the reason why an SAE reconstructs badly: site, scale, threshold, ...",
    "compare": "Say which of several SAEs is better, figure by figure, as far as seeds and text can tell.",
    "interpret": "Find out what every latent stands for: a feature dictionary with tested labels and a dashboard.",
    "serve": "Serve a feature dictionary's dashboard, with a page that encodes what is typed.",
    "label": "Label features by a language model or by hand; only what passes its test is shown.",
    "predict": "Write the sparse activations of a text to Parquet: document, position, latent, value.",
    "drift": "Compare two dictionaries: which features were kept, moved, split, lost.",
    "steer": "Change a feature while the model writes: texts side by side, doses, effect and cost.",
    "panel": "Steer features on a fixed panel: reliable, weak or harmful, with what it costs.",
    "registry": "Publish, promote and roll back versions of feature dictionaries, behind a policy, with a log.",
    "pipeline": "Run fit, validate, interpret and panel in one go; what is done is skipped.",
    "superpose": "Train the toy model of superposition, and draw how features share too few dimensions.",
    "open": "Say what a file or folder is, of lightsae or another library, and what the SAE in it is.",
    "convert": "Write an SAE as files of another library, or as lightsae's own.",
    "push": "Publish an SAE with a model card: on the Hugging Face Hub, or in a folder.",
    "sites": "List the places of a language model where activations can be read, with their widths.",
}
# They have no settings that a YAML file could hold.
_WITHOUT_FILES = ("open", "convert", "sites")
_EXAMPLES = """\
Begin with:
  lightsae fit --config configs/quickstart.yaml
  lightsae interpret --sae lightning_logs/version_0/sae --out dictionary
  lightsae steer --sae lightning_logs/version_0/sae --dictionary dictionary --feature 5 --prompt "import" --strength 0.3
  lightsae sites builtin
  lightsae COMMAND --help
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; ends the process with 0, 2 (a mistake of the user), 130 (Ctrl-C) or 143 (SIGTERM)."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        sys.exit(_run(args))
    except LightsaeError as error:
        _fail(error.as_typed())
    except KeyboardInterrupt as stop:
        go_on = "".join(f" Go on: {command}" for command in getattr(stop, "__notes__", []))
        print(f"\nlightsae: stopped.{go_on}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal_number", signal.SIGINT))
    except BrokenPipeError:
        # The reader has gone (lightsae sites gpt2 | head): nothing is left to say, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"lightsae {version()}")
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        raise LightsaeError(f"{command!r} is not a command.{did_you_mean(command, COMMANDS)} See: lightsae --help")
    return _runner(command, rest)(files_first(rest))


def _runner(command: str, args: list[str]) -> Callable[[list[str]], int]:
    """Import what the command needs, and no more: `--help` and `--version` answer at once."""
    run: Callable[[list[str]], int]
    if command not in _WITHOUT_FILES:
        check_config_files(args)
    if command in ("fit", "validate"):
        from lightsae.cli.training.training_cli import run_training

        return lambda rest: run_training(command, rest)
    if command == "estimate":
        from lightsae.cli.training.estimating import run_estimate

        return run_estimate
    run = getattr(import_module(f"lightsae.cli.commands.{command}"), f"run_{command}")
    return run


def _help() -> str:
    lines = [
        "usage: lightsae COMMAND [OPTIONS]",
        "",
        "Sparse autoencoders on language-model activations: train, judge, interpret, steer.",
        "",
        "Commands:",
        *(f"  {name:<10} {what}" for name, what in COMMANDS.items()),
        "",
        "  --help     This text; after a command, its options.",
        "  --version  The version.",
        "",
        _EXAMPLES,
    ]
    return "\n".join(lines).rstrip()


def _fail(message: str) -> None:
    print(f"lightsae: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
