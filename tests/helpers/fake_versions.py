"""Tiny SAEs with feature dictionaries and reports of their own, to publish."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from helpers.fake_dictionary import SITE, fake_manifest, fake_tables
from lightsae.analysis.dictionary import write_dictionary
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import VARIANTS, SiteRef, Widths

FEATURES = 16
EASY = "labels: {min_share_labelled: 0.1}\n"
FIGURES = {"val/fve_no_sinks": 0.9, "val/ce_recovered": 0.97, "val/dead_fraction": 0.01}


@dataclass(frozen=True)
class Parts:
    """What is published; `id` and `sha256` are those of dictionary and SAE."""

    folder: Path
    dictionary: Path
    sae: Path
    id: str
    sha256: str

    def report(self, kind: str, **changes: Any) -> Path:
        """Write a report that belongs to these parts, but for the changes."""
        whole = {
            "validation": {
                "figures": FIGURES,
                "data": {"model": SITE["model"], "site": SITE["site"]},
                "sha256": {"sae": self.sha256},
            },
            "panel": {
                "schema": 2,
                "dictionary": self.id,
                "sae": self.sha256,
                "features": [{"feature": 0, "verdict": "reliable"}],
                "summary": {
                    "features": 4,
                    "reliable": 2,
                    "weak": 1,
                    "harmful": 1,
                    "reliable_share": 0.5,
                    "causal_usefulness": {"share": 0.5, "low": 0.3, "high": 0.7},
                    "random_floor": {"share": 0.1, "low": 0.0, "high": 0.2},
                    "paired": {"label": {"difference": {"mean": 0.4, "low": 0.1, "high": 0.7}, "p": 0.01}},
                },
            },
            "drift": {"summary": {"sae": {"a": "ee" * 32, "b": self.sha256}, "shares": {"kept": 0.8}}, "features": []},
        }
        path = self.folder / f"{kind}.json"
        path.write_text(json.dumps({**whole[kind], **changes}))
        return path

    def reports(self) -> dict[str, Path]:
        return {kind: self.report(kind) for kind in ("validation", "panel", "drift")}


def make_parts(folder: Path, seed: int, site: dict[str, Any] = SITE, name: str | None = None) -> Parts:
    """Write an SAE at a site, and a feature dictionary of it; `name` is its name in a run of several."""
    torch.manual_seed(seed)
    width = Widths.autoencoder(SiteRef(site["model"], site["site"]), site["width"])
    sae = VARIANTS["TopK"](width, d_sae=FEATURES, k=2)
    save_sae(sae, folder / "sae", {"dictionary": name} if name else None)
    entry = SavedSAE.open(folder / "sae").entry
    manifest = fake_manifest(FEATURES) | {"sae": entry}
    manifest["summary"] = {
        "labelled_share": 0.5,
        "lower_median": 0.8,
        "lower_n": 40,
        "floors": {"shuffled labels": {"share": 0.01, "n": 40, "difference": 0.49, "low": 0.33, "high": 0.63}},
        "above_chance": True,
    }

    def dashboard(staged: Path) -> None:
        (staged / "pictures").mkdir()
        (staged / "pictures" / "map.png").write_bytes(b"a picture")

    identity = write_dictionary(folder / "dictionary", fake_tables(FEATURES, seed), manifest, dashboard)
    return Parts(folder, folder / "dictionary", folder / "sae", identity, entry["sha256"])
