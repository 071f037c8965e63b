"""What a run will take: counted from its settings, timed by a short probe, put together into hours, memory and cost."""

from lightsae.estimate.counts import LanguageModelCosts, language_model_costs, sae_costs
from lightsae.estimate.forecast import Forecast, forecast
from lightsae.estimate.machine import Machine, measured_flops
from lightsae.estimate.plan import RunPlan
from lightsae.estimate.probe import Seconds, probe

__all__ = [
    "Forecast",
    "LanguageModelCosts",
    "Machine",
    "RunPlan",
    "Seconds",
    "forecast",
    "language_model_costs",
    "measured_flops",
    "probe",
    "sae_costs",
]
