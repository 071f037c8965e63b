"""`lightsae cache`: activations of a text, written down once."""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightsae.activations.cache.manifest import Manifest
from lightsae.activations.cache.plan import CachePlan, plan_cache
from lightsae.activations.cache.writer import write_cache
from lightsae.activations.settings import DataSettings
from lightsae.cli.settings.command import Bars, CommandParser
from lightsae.cli.settings.text_of_fit import LOADER, OTHERS
from lightsae.cli.settings.trusted import TRUST, check_trusted, restrict_classes
from lightsae.cli.settings.typed import options_of
from lightsae.cli.tables import print_paths
from lightsae.errors import section, under
from lightsae.formats.files import shown

_USAGE = "--data.model MODEL --data.dataset TEXT --data.site SITE --out FOLDER --tokens N [OPTIONS]"
_EXAMPLES = (
    "lightsae cache --data.model openai-community/gpt2 --data.dataset TEXTS.jsonl --data.site resid_post.6 \\",
    "    --out cache --tokens 100000000",
    "lightsae cache --config run.yaml --out cache --tokens 100000000",
    "lightsae fit --config run.yaml --data.cache cache",
)
_DESCRIPTION = """\
Write the activations of a language model at one or several sites to a folder, with the tokens that they belong to.

lightsae fit and validate with --data.cache FOLDER then read them, without a forward pass of the language model. A file
of fit may be given: every site that one of its SAEs reads is written, and what it says of training is left alone.

A writer that was stopped, or killed, goes on when it is started again; one that is asked for more tokens adds them.
Started again on a cache that is complete, it compares every byte, and writes again what is damaged."""


def run_cache(args: Sequence[str]) -> int:
    """Run the command."""
    restrict_classes(None)
    parser = CommandParser("cache", _USAGE, _DESCRIPTION, _EXAMPLES)
    parser.parser_mode = LOADER
    parser.add_argument("-c", "--config", action="config", help="Settings from a YAML file; options win over it.")
    parser.add_function_arguments(cache, as_group=False, skip={"data"})
    parser.add_class_arguments(DataSettings, "data", skip=set(OTHERS))
    parser._action_groups[-1].title = "Text, models and sites, as in fit"
    # It would read a file of these settings alone; --config does.
    parser._option_string_actions["--data"].help = argparse.SUPPRESS
    parsed = parser.parse_args(list(args))
    check_trusted(bool(parsed.data[TRUST]), f"data.{TRUST}", dict(options_of(args)))
    settings = {name: value for name, value in parsed.as_dict().items() if name not in ("config", "data")}
    with under(name_or_path="model", revision="model_revision"):
        with section("data"):
            data = DataSettings(**parsed.data.as_dict())
        try:
            cache(data, **settings)
        except KeyboardInterrupt as stop:
            stop.add_note(f"lightsae cache {shlex.join(args)}")
            raise
    return 0


def cache(
    data: DataSettings,
    out: str,
    tokens: int,
    store_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "cpu",
    shard_tokens: int | None = None,
) -> None:
    """Write a cache, and say what it is.

    Args:
        data: Text, models and sites.
        out: Folder to write, or to go on with.
        tokens: Tokens to train on; fewer where the text ends before. data.val_tokens of held-out text come with them.
        store_dtype: Dtype of the stored activations; `auto`: that of the language model.
        device: Where the language model runs: `cpu`, `cuda`, `cuda:1`, ...
        shard_tokens: Tokens of one file, the most that a kill costs; null: about 256 MB.
    """
    plan = plan_cache(data, out, tokens, store_dtype=store_dtype, device=device, shard_tokens=shard_tokens)
    _announce(plan)
    began = time.monotonic()
    manifest = write_cache(plan, Bars(unit="tokens"))
    _report(plan, manifest, time.monotonic() - began)


def _announce(plan: CachePlan) -> None:
    settings, identity = plan.source.settings, plan.identity
    more = f", of which {_size(plan.missing_bytes)} are missing" if plan.present is not None else ""
    print_paths(
        ("sites", ", ".join(f"{site.name} (width {site.width:,})" for site in identity.sites)),
        ("model", f"{settings.model}, in {identity.model_dtype} on {plan.process.device}"),
        ("text", f"{settings.dataset}, rows of {settings.context_size} tokens"),
        ("size", f"{_size(plan.bytes)} in {identity.dtype}: {plan.tokens:,} tokens{more}"),
        ("folder", plan.folder),
    )


def _report(plan: CachePlan, manifest: Manifest, seconds: float) -> None:
    train, held_out = manifest.tokens("train"), manifest.tokens("validation")
    before = plan.present.tokens("train") + plan.present.tokens("validation") if plan.present else 0
    if written := train + held_out - before:
        print(f"{written:,} tokens written, {written / max(seconds, 1e-9):,.0f} tokens/s")
    if train < plan.rows["train"] * plan.context:
        print(f"the text ends after {train:,} training tokens")
    print(f"{train:,} tokens to train on, {held_out:,} held out; fingerprint {manifest.identity.fingerprint}")
    print_paths(("train on it", f"lightsae fit --data.cache {shlex.quote(str(shown(Path(plan.folder))))} ..."))


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
