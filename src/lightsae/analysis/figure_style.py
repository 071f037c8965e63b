"""How the figures look: for papers, and for TensorBoard."""

from typing import Any

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    # Labels, tokens and prompts are no mathematics, whatever dollar signs they hold.
    "text.parse_math": False,
}
