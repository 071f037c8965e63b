"""The feature dictionary as a versioned artefact: written, opened, searched, exported."""

from lightsae.analysis.dictionary.export_json import export_case_study
from lightsae.analysis.dictionary.feature_dictionary import Feature, FeatureDictionary
from lightsae.analysis.dictionary.neuronpedia import Release, export_neuronpedia
from lightsae.analysis.dictionary.writer import write_dictionary

__all__ = [
    "Feature",
    "FeatureDictionary",
    "Release",
    "export_case_study",
    "export_neuronpedia",
    "write_dictionary",
]
