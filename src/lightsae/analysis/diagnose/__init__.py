"""Why an SAE reconstructs badly: the mistakes of reading that people meet, each tried on the same activations."""

from lightsae.analysis.diagnose.diagnose import DiagnoseSettings, diagnose
from lightsae.analysis.diagnose.report import Diagnosis, Tried
from lightsae.analysis.diagnose.verdict import Verdict

__all__ = ["DiagnoseSettings", "Diagnosis", "Tried", "Verdict", "diagnose"]
