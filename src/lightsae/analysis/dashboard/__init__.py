"""Pictures of a feature dictionary: a folder of pages that opens without a server, maps, and figures for papers."""

from lightsae.analysis.dashboard.maps import Colouring, Map
from lightsae.analysis.dashboard.pages import write_dashboard

__all__ = ["Colouring", "Map", "write_dashboard"]
