"""Language models that several SAEs share: each is loaded once."""

from collections.abc import Sequence
from typing import Any

from lightsae.lm import LanguageModel


class LanguageModels:
    """Loads language models, and keeps them for the next SAE of the same."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[object, ...], LanguageModel] = {}

    def load(self, name_or_path: str, *, known_as: str, sites: Sequence[str] | None, **settings: Any) -> LanguageModel:
        """Return a language model under the name that an SAE knows it by.

        Args:
            name_or_path: Hub name, local folder, or `builtin`.
            known_as: The name under which the SAE was trained on it.
            sites: What is read, where layers behind it and the head are not needed; None: they are.
            settings: Further ones of `LanguageModel.from_pretrained`.

        Raises:
            ModelError: There is no such model.
        """
        part = None if sites is None else tuple(sites)
        # As words: a device map is a dict.
        key = (name_or_path, known_as, part, *(f"{name} {value}" for name, value in sorted(settings.items())))
        if key not in self._loaded:
            self._loaded[key] = LanguageModel.from_pretrained(name_or_path, sites=sites, **settings)
        return self._loaded[key]
