"""What is watched: features of an SAE, its feature dictionary and a language model that belong together."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.compatibility import check_model
from lightsae.errors import ConfigError, SiteError, arg
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import SparseAutoencoder


@dataclass(frozen=True)
class WatchedFeature:
    """One feature, as the feature dictionary has it.

    Attributes:
        number: Which.
        label: None without a label.
        maximum: Its largest activation; None if it never fired.
        frequency: Share of that text's tokens on which it is active.
    """

    number: int
    label: str | None
    maximum: float | None
    frequency: float | None


@dataclass(frozen=True)
class WatchedFeatures:
    """Features of an SAE in a language model.

    Attributes:
        model: A LanguageModel, or a transformers model.
        sae: The SAE.
        dictionary: The feature dictionary that was made for it.
        features: In the order of the columns of all arrays.
    """

    model: Any
    sae: SparseAutoencoder
    dictionary: FeatureDictionary
    features: list[WatchedFeature]

    @property
    def numbers(self) -> list[int]:
        """The features by number."""
        return [feature.number for feature in self.features]

    @property
    def sae_sha256(self) -> str:
        """The hash of the SAE, which the feature dictionary knows."""
        return str(self.dictionary.manifest["sae"]["sha256"])

    @classmethod
    def of(
        cls,
        model: Any,
        dictionary: FeatureDictionary | str | Path,
        sae: SavedSAE | SparseAutoencoder | str | Path,
        numbers: Sequence[int] | None,
        *,
        any_model: bool,
    ) -> "WatchedFeatures":
        """Check that all belongs together.

        Raises:
            ModelError: The SAE was trained on another model or revision.
            SiteError: It reads several models.
            FormatError: The feature dictionary belongs to another SAE.
            ConfigError: A feature does not exist; or none is labelled.
        """
        dictionary = FeatureDictionary.of(dictionary)
        sae = dictionary.named(sae).sae
        dictionary.check_belongs_to(sae)
        models = {ref.model for ref in sae.widths.read}
        if len(models) > 1:
            names = ", ".join(repr(name) for name in sorted(models))
            raise SiteError(f"the SAE reads several models ({names}), of which only one runs here.")
        if not any_model:
            check_model(model, models.pop(), dictionary.manifest.get("model", {}).get("revision"))
        table = dictionary.sql(
            "SELECT feature AS number, label, CASE WHEN isfinite(max) AND max > 0 THEN max END AS maximum, frequency "
            "FROM features WHERE list_contains($numbers, feature) ORDER BY list_position($numbers, feature)",
            {"numbers": _chosen(dictionary, numbers, sae.d_sae)},
        )
        return cls(model, sae, dictionary, [WatchedFeature(**row) for row in table.to_pylist()])


def _chosen(dictionary: FeatureDictionary, features: Sequence[int] | None, d_sae: int) -> list[int]:
    if features is None:
        chosen: list[int] = dictionary.filter("label IS NOT NULL", tier="high")["feature"].to_pylist()
        if not chosen:
            raise ConfigError(
                "No feature of the dictionary is labelled with tier 'high'; name some: features=[12, 34]."
            )
        return chosen
    if not all(isinstance(f, numbers.Integral) for f in features):
        raise ConfigError("features", features, "write numbers, such as [12, 34]; dictionary.search(text) finds them")
    chosen = list(dict.fromkeys(int(feature) for feature in features))
    if not chosen:
        raise ConfigError(
            f"{arg('features')} is empty; write numbers, such as [12, 34], or None for all of tier 'high'."
        )
    for feature in chosen:
        if not 0 <= feature < d_sae:
            raise ConfigError(f"feature {feature} does not exist: the SAE has {d_sae}, from 0.")
    return chosen
