"""Language models that several SAEs share: each is loaded once."""

from collections.abc import Sequence

from lightsae.lm import LanguageModel


class LanguageModels:
    """Loads language models, and keeps them for the next SAE of the same."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[object, ...], LanguageModel] = {}

    def load(
        self,
        name_or_path: str,
        *,
        known_as: str,
        revision: str | None,
        dtype: str,
        device: str,
        sites: Sequence[str] | None,
        trust_remote_code: bool,
    ) -> LanguageModel:
        """Return a language model under the name that an SAE knows it by.

        Args:
            name_or_path: Hub name, local folder, or `builtin`.
            known_as: The name under which the SAE was trained on it.
            revision: Branch, tag or commit on the Hub.
            dtype: As `LanguageModel.from_pretrained`.
            device: Where it runs.
            sites: What is read, where layers behind it and the head are not needed; None: they are.
            trust_remote_code: Allow code from the model's repository to run.

        Raises:
            ModelError: There is no such model.
        """
        part = None if sites is None else tuple(sites)
        key = (name_or_path, known_as, revision, dtype, device, part, trust_remote_code)
        if key not in self._loaded:
            self._loaded[key] = LanguageModel.from_pretrained(
                name_or_path,
                revision=revision,
                dtype=dtype,
                device=device,
                sites=sites,
                trust_remote_code=trust_remote_code,
            )
        return self._loaded[key]
