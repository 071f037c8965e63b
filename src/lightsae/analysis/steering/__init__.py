"""Steering: features of a dictionary changed while the language model runs."""

from lightsae.analysis.steering.interventions import Ablate, Add, Clamp, Fires, Intervention, MinClamp, ProjectOut
from lightsae.analysis.steering.steer import Steering, steer
from lightsae.lm.generate import Samples, Sampling, generate_samples

__all__ = [
    "Ablate",
    "Add",
    "Clamp",
    "Fires",
    "Intervention",
    "MinClamp",
    "ProjectOut",
    "Samples",
    "Sampling",
    "Steering",
    "generate_samples",
    "steer",
]
