"""The same for TensorBoard: directions with their labels in the embedding projector, histograms, the figures.

Axes: F features, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightsae.analysis.dashboard.figures import draw_figures, numbers
from lightsae.analysis.dashboard.maps import Map
from lightsae.analysis.dictionary.figures import lower_scores

_HISTOGRAMS = (
    "frequency",
    "max",
    "window_coherence",
    "document_coherence",
    "ablation_kl",
    "s_in",
    "s_out",
)
_PROJECTED = ("feature", "label", "tier", "frequency", "tokens")


def write_tensorboard(
    folder: Path,
    tables: Mapping[str, pa.Table],
    *,
    W_dec: Float[Tensor, "F D"] | None = None,
    neurons: Mapping[str, pa.Table] | None = None,
    maps: Sequence[Map] = (),
    kind: str = "",
) -> None:
    """Write an events file, and the projector's files, into a folder.

    Args:
        folder: As `tensorboard --logdir` takes it.
        tables: Tables of the feature dictionary.
        W_dec: Decoder rows, by feature, for the projector; None: no projector.
        neurons: The tables of the raw neurons.
        maps: Drawn as figures.
        kind: What the neurons are called.
    """
    features = tables["features"]
    with SummaryWriter(str(folder)) as writer:
        for prefix, side in (("features", tables), ("neurons", neurons)):
            if side is None:
                continue
            histograms = {column: numbers(side["features"], column) for column in _HISTOGRAMS}
            # Of every tested feature: over the labels that passed alone it could not fall below the gate.
            histograms["lower_of_precision_and_recall"] = lower_scores(side)
            for name, values in histograms.items():
                if len(values):
                    writer.add_histogram(f"{prefix}/{name}", values)
        for name, figure in draw_figures(tables, neurons=neurons, maps=maps, kind=kind).items():
            writer.add_figure(name, figure)
        if W_dec is not None:
            order = features.sort_by("feature")
            rows = W_dec.detach().cpu().float()[order["feature"].to_numpy().tolist()]
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
            writer.add_embedding(rows, metadata=_metadata(order), metadata_header=list(_PROJECTED), tag="decoder")


def _metadata(features: pa.Table) -> list[list[str]]:
    """Return one row per feature; the projector's file has one line per row, and tabs between columns."""
    columns = features.select(["feature", "label", "tier", "frequency", "tokens_on"]).to_pylist()
    return [
        [
            str(row["feature"]),
            _one_cell("unlabelled" if row["label"] is None else row["label"]),
            row["tier"] or "",
            f"{row['frequency'] or 0:.3g}",
            _one_cell(" ".join(token["text"] or "" for token in (row["tokens_on"] or [])[:4])),
        ]
        for row in columns
    ]


def _one_cell(text: str) -> str:
    return " ".join(text.split()) or "-"
