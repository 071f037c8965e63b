"""Callbacks: what watches a run, and the one that acts on it (resampling)."""

from lightsae.callbacks.export import ExportSAE
from lightsae.callbacks.ground_truth import GroundTruth
from lightsae.callbacks.lm_metrics import LanguageModelMetrics
from lightsae.callbacks.model_diff import ModelDiff
from lightsae.callbacks.progress import TrainingProgressBar
from lightsae.callbacks.reconstruction_metrics import ReconstructionMetrics
from lightsae.callbacks.resampling import DeadLatentResampling
from lightsae.callbacks.run_checkpoint import FinalValidation, Interrupted, RunCheckpoint
from lightsae.callbacks.sweep.summary import SweepSummary
from lightsae.callbacks.throughput import Throughput
from lightsae.callbacks.training_curves import TrainingCurves

__all__ = [
    "DeadLatentResampling",
    "ExportSAE",
    "FinalValidation",
    "GroundTruth",
    "Interrupted",
    "LanguageModelMetrics",
    "ModelDiff",
    "ReconstructionMetrics",
    "RunCheckpoint",
    "SweepSummary",
    "Throughput",
    "TrainingCurves",
    "TrainingProgressBar",
]
