"""Says of SAEs which is better, figure by figure, as far as seeds and text allow."""

from lightsae.analysis.compare.run import CompareSettings, Comparison, compare
from lightsae.analysis.compare.verdicts import Verdict, verdicts

__all__ = ["CompareSettings", "Comparison", "Verdict", "compare", "verdicts"]
