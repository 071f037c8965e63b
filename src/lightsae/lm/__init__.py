"""The frozen language model: load it, name its sites, read and write its activations."""

from lightsae.lm.model import LanguageModel, ModelDescription, describe
from lightsae.lm.sites import FAMILIES, PORTABLE, SiteInfo

__all__ = ["FAMILIES", "PORTABLE", "LanguageModel", "ModelDescription", "SiteInfo", "describe"]
