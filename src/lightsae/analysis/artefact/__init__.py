"""The feature dictionary as a versioned artefact: written, opened, searched, exported."""

from lightsae.analysis.artefact.case_study import export_case_study
from lightsae.analysis.artefact.feature_dictionary import Feature, FeatureDictionary
from lightsae.analysis.artefact.neuronpedia import Release, export_neuronpedia
from lightsae.analysis.artefact.writer import write_dictionary

__all__ = [
    "Feature",
    "FeatureDictionary",
    "Release",
    "export_case_study",
    "export_neuronpedia",
    "write_dictionary",
]
