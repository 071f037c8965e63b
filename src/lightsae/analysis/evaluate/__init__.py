"""Judges an SAE so that others can trust it: figures with their definition, text and noise, and controls."""

from lightsae.analysis.evaluate.evaluate import EvaluateSettings, evaluate
from lightsae.analysis.evaluate.report import Evaluation, Figure

__all__ = ["EvaluateSettings", "Evaluation", "Figure", "evaluate"]
