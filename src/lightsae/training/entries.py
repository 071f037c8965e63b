"""What a run trains: one SAE, or several by name, each with its place, its loss and its learning rate."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch.nn import ModuleDict

from lightsae.errors import ConfigError, arg, did_you_mean, section, under
from lightsae.sae import SparseAutoencoder, Widths
from lightsae.training.kl import KL
from lightsae.training.schedules import Schedule
from lightsae.training.start import check_start

MakeSAE = Callable[[Widths], SparseAutoencoder]
Coefficients = Mapping[str, float | Schedule]
ONLY = "sae"


@dataclass
class Entry:
    """One SAE of a run. What is left out is taken from the settings of the whole run.

    Args:
        sae: A variant with its settings, or in Python a function from `Widths` to an SAE.
        site: Where it reads; a list for a crosscoder. Null: data.site.
        target_site: What a transcoder predicts; null: data.target_site where `site` is left out too, or else `site`.
        coefficients: Weight of each loss term, a number or {value, warm_up, decay, begin}.
        lr: Peak learning rate of Adam.
        start: Where the weights start; see model.start.
    """

    sae: MakeSAE
    site: str | list[str] | None = None
    target_site: str | list[str] | None = None
    coefficients: dict[str, float | Schedule] = field(default_factory=dict)
    lr: float | None = None
    start: str | None = None


def check_entries(sae: MakeSAE | None, saes: Mapping[str, Entry] | None) -> dict[str, Entry]:
    """Return the SAEs of a run by name; a single one is called `sae`.

    Raises:
        ConfigError: None is given, or both forms, or a name cannot be the name of a folder and of a module.
    """
    if sae is not None and saes:
        raise ConfigError(
            f"{arg('sae')} and {arg('saes')} ({', '.join(saes)}) are both given; write {arg('sae')} for one SAE, "
            f"{arg('saes')} for several. ({arg('sae')} null takes the first back.)"
        )
    if sae is not None:
        return {ONLY: Entry(sae)}
    if not saes:
        raise ConfigError(f"{arg('sae')} is missing: choose a variant, or name several SAEs under {arg('saes')}.")
    for name, entry in saes.items():
        # The names that a container of modules has itself are taken: `keys`, `train` ...
        if (
            not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)
            or name in ("train", "val", "perf")
            or hasattr(ModuleDict, name)
        ):
            raise ConfigError(f"{arg('saes')}: {name!r} cannot be an SAE's name; write letters, digits, _ and -.")
        if entry.lr is not None and entry.lr <= 0:
            raise ConfigError(f"saes.{name}.lr", entry.lr, "it must be above 0")
    return dict(saes)


def build_saes(
    entries: Mapping[str, Entry],
    widths: Mapping[str, Widths],
    coefficients: Coefficients,
    start: str,
    short_form: bool,
) -> dict[str, tuple[SparseAutoencoder, dict[str, Schedule]]]:
    """Make every SAE of a run, without weights that mean anything yet, and its coefficients.

    Args:
        entries: By name, as `check_entries` returns them.
        widths: The sites of every SAE.
        coefficients: Those of the whole run.
        start: Where the weights of the run start; it has to fit the SAEs, as an entry's own has to.
        short_form: The one SAE was given as `sae`, not as an entry of `saes`.

    Raises:
        ConfigError: A setting does not fit.
    """
    built: dict[str, tuple[SparseAutoencoder, dict[str, Schedule]]] = {}
    for name, entry in entries.items():
        if short_form:
            with section("model.sae"):
                sae = entry.sae(widths[name])
            check_trained(sae)
            built[name] = sae, merge_coefficients(sae, coefficients)
        else:
            with under(f"saes.{name}"):
                with under("sae"):
                    sae = entry.sae(widths[name])
                check_trained(sae)
                built[name] = sae, merge_coefficients(sae, coefficients, entry.coefficients)
                if entry.start is not None:
                    check_start(entry.start, sae)
        if entry.start is None:
            check_start(start, sae)
    for term in coefficients:
        if not any(term in terms for _, terms in built.values()):
            raise ConfigError(f"{arg(f'coefficients.{term}')}: none of the SAEs has this loss term.")
    return built


def check_trained(sae: SparseAutoencoder) -> None:
    """Raise a ConfigError where the mechanism is made for SAEs out of files."""
    if sae.mechanism.train_instead:
        raise sae.mechanism.not_trained()


def merge_coefficients(sae: SparseAutoencoder, *levels: Coefficients) -> dict[str, Schedule]:
    """Return every loss term's schedule: the variant's defaults, and over them the run's and the entry's.

    Raises:
        ConfigError: A term of the last one is none of the variant's.
    """
    mechanism = sae.mechanism
    merged: dict[str, float | Schedule] = dict(mechanism.default_coefficients)
    for level, coefficients in enumerate(levels, 1):
        for term, value in coefficients.items():
            if term in merged or term == KL:
                merged[term] = value
            elif level == len(levels):  # what is set for a whole run concerns those SAEs that have the term
                raise ConfigError(
                    f"{arg(f'coefficients.{term}')}: {type(sae).__name__} has the loss terms {', '.join(merged)}, {KL}."
                    + did_you_mean(term, [*merged, KL])
                )
    return {
        term: value if isinstance(value, Schedule) else Schedule(float(value), mechanism.default_warm_up.get(term, 0.0))
        for term, value in merged.items()
    }
