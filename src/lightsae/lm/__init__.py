"""The frozen language model: load it, name its sites, read and write its activations."""

from lightsae.lm.description import ModelDescription
from lightsae.lm.families import FAMILIES
from lightsae.lm.model import LanguageModel, describe
from lightsae.lm.sites import PORTABLE, SiteInfo

__all__ = ["FAMILIES", "PORTABLE", "LanguageModel", "ModelDescription", "SiteInfo", "describe"]
