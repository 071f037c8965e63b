"""`lightsae fit --help`: first what people change, last the Trainer's hundreds; every variant with its settings."""

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

from lightsae.sae import MECHANISMS, VARIANTS, SparseAutoencoder
from lightsae.sae.variants import trained

_EXAMPLES = {
    "fit": """\
  lightsae fit --config configs/quickstart.yaml --trainer.max_steps 500

  lightsae fit --data.model openai-community/gpt2 --data.site resid_post.6 \\
      --data.dataset TEXTS.jsonl --model.sae TopK --model.sae.d_sae 24576 \\
      --model.sae.k 32 --trainer.max_steps 20000

  lightsae fit --config lightning_logs/version_0/config.yaml --ckpt_path last""",
    "estimate": """\
  lightsae estimate --config configs/quickstart.yaml

  lightsae estimate --config FILE.yaml --tokens 1_000_000_000 \\
      --trainer.devices 8 --price_per_hour 3 --flops 4e14 --bandwidth 3e12""",
    "validate": """\
  lightsae validate --config lightning_logs/version_0/config.yaml \\
      --ckpt_path last""",
}
_DATA = (
    *("model", "site", "target_site", "dataset", "datasets", "text_column", "roles"),
    *("activations", "cache", "context_size"),
    *("batch_tokens", "buffer_tokens", "training_tokens", "val_tokens"),
)
_TRAINER = (
    *("max_steps", "accelerator", "devices", "precision", "val_check_interval", "log_every_n_steps"),
    *("gradient_clip_val", "accumulate_grad_batches", "callbacks", "default_root_dir", "enable_progress_bar"),
)
# In the words of this command, where those of the libraries are about something else as well.
_WORDS = {
    "help": "This text.",
    "config": "Settings from a YAML file; may be given several times, and later ones win.",
    "print_config": "Print all settings as they would be used, as YAML, and exit.",
    "seed_everything": "Seed of every random draw.",
    "model.sae": f"The variant of SAE: {', '.join(trained(VARIANTS))}. Its own settings follow below.",
    "model.sae.mechanism": f"What makes the latents sparse: {', '.join(trained(MECHANISMS))}. Its own settings are "
    "those listed under that variant, written --model.sae.mechanism.k and so on.",
    "model.saes": "In a file, in place of model.sae: several SAEs, trained on one stream.",
    "model.coefficients": "Weight of a loss term, --model.coefficients.l1 8; in a file also with a schedule, "
    "l1: {value: 8, warm_up: 0.05, decay: 0}. Terms left out keep the variant's defaults.",
    "trainer.max_steps": "Length of the run in optimiser steps; or give data.training_tokens.",
    "trainer.accelerator": "cpu, gpu, cuda, mps, or auto: the best there is.",
    "trainer.precision": "32-true, or bf16-mixed: faster on most hardware; the weights stay float32.",
    "trainer.val_check_interval": "Steps between validations; there is one at the end in any case.",
    "trainer.log_every_n_steps": "Steps between figures in TensorBoard.",
    "trainer.gradient_clip_val": "Clip the gradient to this norm, each SAE by itself; without, every step has norm 1.",
    "trainer.callbacks": "More callbacks, best written in the file: trainer: {callbacks: [{class_path: "
    "DeadLatentResampling, init_args: {steps: [5000, 10000]}}]}",
    "trainer.default_root_dir": "Folder in which lightning_logs/version_N is made; this folder by default.",
}
_SEVERAL = """\
In a file, under `model`: one pass of the language model serves all; each has its own place, loss and learning rate, and
ends in the weights that it would have alone.

  saes:
    small: {sae: {class_path: TopK, init_args: {d_sae: 2048, k: 16}}}
    early: {sae: {class_path: JumpReLU, init_args: {d_sae: 2048}},
            site: resid_post.1, lr: 1.0e-3, coefficients: {l0_penalty: 0.01}}

Or as a grid: every combination of the listed values.

  grid:
    topk: {sae: {class_path: TopK,
                 init_args: {d_sae: [2048, 8192], k: [16, 32]}}}"""
_REFINEMENTS = "model.sae.refinements"
_CKPT_PATH = {
    "fit": "Go on from this checkpoint. `last`, with --config RUN/config.yaml: that run's own, in that run's folder.",
    "validate": "The checkpoint to measure. `last`, with --config RUN/config.yaml: that run's own.",
    "estimate": "Not looked at: the estimate is of the whole run.",
}
_NAMES_OF_VALUES = {
    "config": "FILE",
    "ckpt_path": "PATH",
    "seed_everything": "INT",
    "model.sae": "VARIANT",
    "model.sae.mechanism": "MECHANISM",
    "allow_classes": "PACKAGE",
    "data.site": "SITE",
    "data.target_site": "SITE",
}
_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "{true,false}"}


@dataclass
class Section:
    """What argparse prints as a group."""

    title: str
    description: str | None = None
    _group_actions: list[argparse.Action] = field(default_factory=list)


class HelpFormatter(DefaultHelpFormatter):
    """Names the kind of value, not the setting in capitals, leaves Python's types out, and wraps paragraphs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._max_help_position = 34 if self._width >= 100 else 28

    def _get_help_string(self, action: argparse.Action) -> str:
        help_text = _WORDS.get(action.dest) or _plain(action.help or "", shorten=action.dest.startswith("trainer."))
        if action.required:
            return f"{help_text} (required)"
        if action.default in (None, argparse.SUPPRESS) or action.dest in ("config", "trainer.max_steps"):
            return help_text
        default = str(action.default).lower() if isinstance(action.default, bool) else action.default
        return f"{help_text} (default: {default})"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # --devices+ appends to a list; who needs it finds it in jsonargparse's documentation.
        names = [name for name in action.option_strings if not name.endswith("+")]
        if not names:
            return action.dest.upper()
        value = "" if action.nargs == 0 or action.dest == "print_config" else f" {_metavar(action)}"
        return ", ".join(names) + value

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap paragraphs; lines that begin with spaces stay as they are."""
        wrap = textwrap.TextWrapper(width, initial_indent=indent, subsequent_indent=indent)
        return "\n\n".join(
            textwrap.indent(paragraph, indent) if paragraph.startswith(" ") else wrap.fill(" ".join(paragraph.split()))
            for paragraph in text.split("\n\n")
        )


def settings_of(variant: type[SparseAutoencoder]) -> list[str]:
    """Return the names of a variant's own settings."""
    return [name for name in inspect.signature(variant).parameters if name != "widths"]


def arranged(
    command: str, actions: Sequence[argparse.Action], actions_of: Callable[[type], Iterable[argparse.Action]]
) -> list[Section]:
    """Return the settings of a command in the order in which a newcomer needs them.

    Args:
        command: `fit`, `validate` or `estimate`.
        actions: All of them.
        actions_of: Gives those of a variant, named as they are written behind --model.sae.
    """
    names = [action.dest for action in actions if not action.dest.endswith(".help")]
    # --data FILE.yaml and the like: nobody needs it beside --config.
    whole = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    left = {action.dest: action for action in actions if action.dest in names and action.dest not in whole}
    left["ckpt_path"].help = _CKPT_PATH[command]

    def take(*wanted: str) -> list[argparse.Action]:
        return [left.pop(name) for name in wanted if name in left]

    def take_all(*sections: str) -> list[argparse.Action]:
        return take(*[name for name in left if name.startswith(tuple(f"{section}." for section in sections))])

    if command == "estimate":
        own = take("config", "tokens", "price_per_hour", "flops", "bandwidth", "out", "help")
        others = "Everything in `lightsae fit --help` can be set here too, in the same words."
        return [Section("Examples", _EXAMPLES[command]), Section("General", None, own), Section("Further", others)]
    begin = take("config", "ckpt_path", "seed_everything", "allow_classes", "print_config", "help")
    data = take(*(f"data.{name}" for name in _DATA))
    model = take("model.sae", "model.saes")
    loss = take_all("model")
    sections = [
        Section("Examples", _EXAMPLES[command]),
        Section("General", None, begin),
        Section("Data", "Where activations come from: a language model and text, or activation files.", data),
        Section(
            "SAE",
            "Name a variant first, then its settings: --model.sae TopK --model.sae.d_sae 3072 --model.sae.k 20\n\n"
            "The width of what it reads follows from model and site.",
            model,
        ),
        Section("Several SAEs in one run", _SEVERAL),
        *(
            Section(
                f"--model.sae {name}",
                (inspect.getdoc(kind) or "").split("\n\n")[0],
                [a for a in actions_of(kind) if not a.dest.startswith(_REFINEMENTS) and not a.dest.endswith(".help")],
            )
            for name, kind in trained(VARIANTS).items()
        ),
        Section(
            "Options of every variant",
            "Ideas of 2026, off by default; docs/decisions.md says what each brought.",
            [a for a in actions_of(next(iter(VARIANTS.values()))) if a.dest.startswith(f"{_REFINEMENTS}.")],
        ),
    ]
    if command == "validate":
        others = "Everything in `lightsae fit --help` can be set here too."
        return [*sections, Section("More about the data", None, take_all("data")), Section("Further", others)]
    trainer = take(*(f"trainer.{name}" for name in _TRAINER))
    more_data, more_trainer = take_all("data"), take_all("trainer")
    return [
        *sections,
        Section("Loss and learning rate", None, loss),
        Section("Training", "The settings of Lightning's Trainer that people change.", trainer),
        Section("What is saved and measured on the way", None, list(left.values())),
        Section("More about the data", None, more_data),
        Section("More of Lightning's Trainer", "Seldom needed.", more_trainer),
    ]


def _plain(text: str, shorten: bool) -> str:
    """Return a docstring without its markup; of Lightning's, which are long, the first sentence."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda found: found[1].rpartition(".")[2], " ".join(text.split()))
    text = text.replace("``", "").replace("None:", "null:")
    return re.split(r"(?<=[a-z)])\. (?=[A-Z])", text)[0].rstrip(".") + "." if shorten else text


def _metavar(action: argparse.Action) -> str:
    if action.dest in _NAMES_OF_VALUES:
        return _NAMES_OF_VALUES[action.dest]
    if file := re.match(r"(File|Folder)\b", _WORDS.get(action.dest) or action.help or ""):
        return file[1].upper()
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    hint: Any = getattr(action, "_typehint", None) or action.type
    kinds = [kind for kind in (get_args(hint) if get_origin(hint) is not Literal else ()) if kind is not type(None)]
    only = kinds[0] if len(kinds) == 1 else hint
    if get_origin(only) is Literal:
        return "{" + ",".join(map(str, get_args(only))) + "}"
    return _METAVARS.get(only, "VALUE")
