"""SAELens' own code beside ours: small files that it wrote, with what it gives for them, and a check both ways.

    PYTHONHASHSEED=0 python -P scripts/layout_fixtures/sae_lens.py  # writes tests/fixtures/layouts/sae_lens
    python -P scripts/layout_fixtures/sae_lens.py --check           # ours and theirs; exit code 1 if they differ

Needs `sae-lens` beside lightsae, with src and scripts on PYTHONPATH: see `make bench-formats`. With -P the package is
found, and not this file, which has its name; SAELens writes settings in the order of their hashes. A
fixture's expected.safetensors holds activations (T, D), and the latents (T, F) and predictions (T, O) of SAELens' class
for them; the latents of AbsTopK with their signs as two sides, (T, 2F), since ours are never negative.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE  # type: ignore[import-not-found]
from sae_lens.registry import get_sae_class, get_sae_training_class  # type: ignore[import-not-found]
from sae_lens.saes.sae import SAEMetadata  # type: ignore[import-not-found]
from sae_lens.training.activation_scaler import ActivationScaler  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from torch import Tensor

from layout_fixtures._comparing import Comparison
from lightsae.formats.layouts import PortableSAE, Source
from lightsae.formats.layouts.sae_lens import SAELens
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import (
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)
from lightsae.sae.token_norm import TokenNorm

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "layouts" / "sae_lens"
D_IN, D_SAE, D_OUT, K, TOKENS, HEADS = 6, 16, 8, 4, 24, 2
# Of the largest value; where latents differ in support, both have to be below it.
METADATA = {
    "model_name": "gpt2-small",
    "hook_name": "blocks.7.hook_resid_pre",
    "context_size": 128,
    "prepend_bos": True,
}
ACROSS = {"hook_name": "blocks.7.mlp.hook_in", "hook_name_out": "blocks.7.hook_mlp_out"}
Make = Callable[[Path], None]


def drawn(model: Any, seed: int) -> Any:
    """Give every tensor random values, thresholds positive ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() if "threshold" in name else noise)
    return model


def of_class(architecture: str, seed: int, metadata: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """Make an SAE of SAELens' class for an architecture."""
    kind, config = get_sae_class(architecture)
    transcoder = "transcoder" in architecture
    own = {"d_out": D_OUT, "apply_b_dec_to_input": False} if transcoder else {}
    told = SAEMetadata(**(METADATA | (ACROSS if transcoder else {}) | dict(metadata or {})))
    return drawn(kind(config(d_in=D_IN, d_sae=D_SAE, metadata=told, **own, **settings)), seed)


def trained(architecture: str, seed: int, **settings: Any) -> Any:
    """Make an SAE of SAELens' class for training."""
    kind, config = get_sae_training_class(architecture)
    return drawn(kind(config(d_in=D_IN, d_sae=D_SAE, k=K, metadata=SAEMetadata(**METADATA), **settings)), seed)


def saved(architecture: str, seed: int, **settings: Any) -> Make:
    return lambda folder: of_class(architecture, seed, **settings).save_model(folder) and None


def exported(architecture: str, seed: int, **settings: Any) -> Make:
    return lambda folder: trained(architecture, seed, **settings).save_inference_model(folder) and None


def whitened(folder: Path) -> None:
    """An SAE of whitened activations, with the whitening folded as SAELens folds it at the end of a run."""
    sae = of_class("jumprelu", 11, apply_b_dec_to_input=False, normalize_activations="covariance_whitening")
    generator = torch.Generator().manual_seed(11)
    matrix = torch.eye(D_IN) + 0.3 * torch.randn(D_IN, D_IN, generator=generator)
    sae.fold_activation_whitening(torch.randn(D_IN, generator=generator), matrix, matrix.inverse())
    sae.save_model(folder)


def scaled(folder: Path) -> None:
    """An SAE of scaled activations, with the scale folded."""
    sae = of_class("standard", 12, normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(0.3)
    sae.save_model(folder)


def of_run(folder: Path, *, ended: bool) -> None:
    """A checkpoint of a run on scaled activations, or its export at the end, which has the scale folded."""
    sae = trained("batchtopk", 21, normalize_activations="expected_average_only_in")
    if ended:
        sae.fold_activation_norm_scaling_factor(0.3)
        sae.save_inference_model(folder)
    else:
        sae.save_model(folder)
        ActivationScaler(0.3).save(str(folder / "activation_scaler.json"))


def before_version_6(changed: Mapping[str, Any]) -> Make:
    """A file of SAELens 3 to 5, whose configuration is written by hand."""

    def make(folder: Path) -> None:
        of_class("standard", 13).save_model(folder)
        told = {"model_name": "gpt2-small", "hook_point": "blocks.7.hook_resid_pre", "hook_point_layer": 7}
        own = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "activation_fn_str": "relu", "context_size": 128}
        (folder / "cfg.json").write_text(json.dumps(told | own | dict(changed)))

    return make


def pursuit(seed: int, *, of_run: bool = False, norms: tuple[float, float] = (1.0, 1.0), **settings: Any) -> Make:
    """A matching pursuit whose directions have norms between two; or a checkpoint of its run, with scaled inputs."""

    def make(folder: Path) -> None:
        if of_run:
            kind, config = get_sae_training_class("matching_pursuit")
            told = {"decoder_init_norm": 1.0, "normalize_activations": "expected_average_only_in"}
            sae = kind(config(d_in=D_IN, d_sae=D_SAE, metadata=SAEMetadata(**METADATA), **told, **settings))
            ActivationScaler(0.3).save(str(folder / "activation_scaler.json"))
        else:
            sae = of_class("matching_pursuit", seed, **settings)
        with torch.no_grad():
            drawn(sae, seed).W_dec.copy_(
                torch.nn.functional.normalize(sae.W_dec) * torch.linspace(*norms, D_SAE)[:, None]
            )
        sae.save_model(folder)

    return make


def ended(seed: int, **settings: Any) -> Make:
    """The export at the end of that run, which has the scale folded."""

    def make(folder: Path) -> None:
        pursuit(seed, of_run=True, **settings)(folder)
        sae = get_sae_training_class("matching_pursuit")[0].load_from_disk(folder, device="cpu")
        sae.fold_activation_norm_scaling_factor(0.3)
        sae.save_inference_model(folder)

    return make


CASES: dict[str, Make] = {
    "standard": saved("standard", 1),
    "standard_not_centred": saved("standard", 2, apply_b_dec_to_input=False),
    "topk": saved("topk", 3, k=K),
    "topk_rescaled": saved("topk", 4, k=K, rescale_acts_by_decoder_norm=True),
    "abstopk": saved("abstopk", 5, k=K),
    "abstopk_rescaled": saved("abstopk", 6, k=K, rescale_acts_by_decoder_norm=True),
    "jumprelu": saved("jumprelu", 7),
    "gated": saved("gated", 8),
    "matching_pursuit": pursuit(25, residual_threshold=0.7),
    "matching_pursuit_repeated": pursuit(26, residual_threshold=0, max_iterations=9, stop_on_duplicate_support=False),
    "matching_pursuit_any_norm": pursuit(27, norms=(0.5, 1.3), apply_b_dec_to_input=False),
    "matching_pursuit_layer_norm": pursuit(28, residual_threshold=0.2, normalize_activations="layer_norm"),
    "matching_pursuit_checkpoint": pursuit(29, of_run=True, residual_threshold=0.4),
    "hook_z": saved("standard", 9, reshape_activations="hook_z", metadata={"hook_name": "blocks.7.attn.hook_z"}),
    "layer_norm": saved("topk", 23, k=K, normalize_activations="layer_norm"),
    "constant_norm_rescale": saved("jumprelu", 24, normalize_activations="constant_norm_rescale"),
    "transcoder": saved("transcoder", 14),
    "skip_transcoder": saved("skip_transcoder", 15),
    "jumprelu_transcoder": saved("jumprelu_transcoder", 16),
    "jumprelu_skip_transcoder": saved("jumprelu_skip_transcoder", 17),
    "topk_export": exported("topk", 18),
    "batchtopk_export": exported("batchtopk", 19),
    "matryoshka_batchtopk_export": exported("matryoshka_batchtopk", 20, matryoshka_widths=[4, 8, D_SAE]),
    "whitened": whitened,
    "scaled": scaled,
    "scale_lost": saved("standard", 22, normalize_activations="expected_average_only_in"),
    "batchtopk_checkpoint": lambda folder: of_run(folder, ended=False),
    "before_version_6": before_version_6({"normalize_activations": False}),
    "before_version_6_topk": before_version_6({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}),
}
# What SAELens' classes of inference do not read stands for what they read.
READ_BY_THEM: dict[str, Make] = {
    "batchtopk_checkpoint": lambda folder: of_run(folder, ended=True),
    "matching_pursuit_checkpoint": ended(29, residual_threshold=0.4),
}


def theirs(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents and the prediction that SAELens gives for raw activations."""
    with warnings.catch_warnings():
        # That the language model has to be loaded without processing.
        warnings.simplefilter("ignore")
        sae = SAE.load_from_disk(folder, device="cpu")
    given = x.reshape(len(x), HEADS, -1) if sae.cfg.reshape_activations == "hook_z" else x
    with torch.no_grad():
        return sae.encode(given), sae(given).reshape(len(x), -1)


def in_our_terms(folder: Path, latents: Tensor) -> Tensor:
    """Return the two sides of latents with a sign."""
    signed = json.loads((folder / "cfg.json").read_bytes()).get("architecture") == "abstopk"
    return torch.cat([latents.relu(), (-latents).relu()], 1) if signed else latents


def write_fixture(name: str, folder: Path) -> None:
    """Write the files of a case and what SAELens gives for them."""
    folder.mkdir(parents=True, exist_ok=True)
    CASES[name](folder)
    x = 3 * torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as temporary:
        READ_BY_THEM.get(name, CASES[name])(Path(temporary))
        latents, x_hat = theirs(Path(temporary), x)
    expected = {"x": x, "latents": in_our_terms(folder, latents), "x_hat": x_hat}
    save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.safetensors")


WIDTHS = Widths.autoencoder(SiteRef("openai-community/gpt2", "resid_post.3"), 24)
OTHER = Widths({SiteRef("openai-community/gpt2", "mlp_in.3"): 24}, {SiteRef("openai-community/gpt2", "mlp_out.3"): 20})
HEADS_JOINED = Widths.autoencoder(SiteRef("openai-community/gpt2", "attn_z.3"), 24)
OURS: dict[str, Callable[[], SparseAutoencoder]] = {
    "ReLU": lambda: ReLU(WIDTHS, 96),
    "ReLU, unit norms": lambda: ReLU(WIDTHS, 96, decoder_norm="unit"),
    "TopK": lambda: TopK(WIDTHS, 96, k=8),
    "TopK, not centred": lambda: TopK(WIDTHS, 96, k=8, refinements=Refinements(centre_input=False)),
    "TopK, tokens of mean 0 and deviation 1": lambda: TopK(WIDTHS, 96, k=8, refinements=normalised("layer_norm")),
    "TopK, tokens of one norm": lambda: TopK(WIDTHS, 96, k=8, refinements=normalised("rescale")),
    "TopK at attn_z": lambda: TopK(HEADS_JOINED, 96, k=8),
    "BatchTopK": lambda: BatchTopK(WIDTHS, 96, k=8),
    "JumpReLU": lambda: JumpReLU(WIDTHS, 96),
    "Gated": lambda: Gated(WIDTHS, 96),
    "MatchingPursuit": lambda: SparseAutoencoder(WIDTHS, 96, mechanisms.MatchingPursuit(residual_threshold=2.0)),
    "Matryoshka of TopK": lambda: Matryoshka(WIDTHS, 96, mechanisms.TopK(k=8)),
    "Matryoshka of BatchTopK": lambda: Matryoshka(WIDTHS, 96, mechanisms.BatchTopK(k=8)),
    "Transcoder of ReLU": lambda: Transcoder(OTHER, 96, mechanisms.ReLU()),
    "Transcoder of ReLU, skip": lambda: Transcoder(OTHER, 96, mechanisms.ReLU(), skip=True),
    "Transcoder of JumpReLU": lambda: Transcoder(OTHER, 96, mechanisms.JumpReLU()),
    "Transcoder of JumpReLU, skip": lambda: Transcoder(OTHER, 96, mechanisms.JumpReLU(), skip=True),
    "Transcoder of BatchTopK": lambda: Transcoder(OTHER, 96, mechanisms.BatchTopK(k=8)),
    "Transcoder of BatchTopK, skip": lambda: Transcoder(OTHER, 96, mechanisms.BatchTopK(k=8), skip=True),
}


def normalised(kind: TokenNorm) -> Refinements:
    return Refinements(token_norm=kind)


def shaken(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """Give one of our SAEs random tensors, with scales other than 1.

    Of a matching pursuit the scales are 1, since a file has no other unit of latents; encoder and decoder share
    directions of norm 1, without which the search does not end.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sae.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            positive = "scale" in name or name.endswith(".threshold")
            value.copy_(0.3 + noise.abs() if positive else 0.5 * noise)
        if sae.widths.read == sae.widths.predicted:
            sae.output_scale.copy_(sae.input_scale)
        if isinstance(sae.mechanism, mechanisms.MatchingPursuit):
            sae.input_scale.fill_(1)
            sae.output_scale.fill_(1)
            sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec))
            sae.W_enc.copy_(sae.W_dec.T)
            sae.b_enc.zero_()
    return sae.eval()


@torch.no_grad()
def check() -> None:
    """Compare every variant of ours that SAELens has, and every case of SAELens', on random activations."""
    comparison = Comparison()
    comparison.begin()
    for name, make in OURS.items():
        for seed in range(3):
            sae = shaken(make(), seed)
            x = 3 * torch.randn(256, sae.d_in, generator=torch.Generator().manual_seed(100 + seed))
            read, predicted = (next(iter(sites)) for sites in (sae.widths.read, sae.widths.predicted))
            source = Source(model=read.model, site=read.site, target_site=None if read == predicted else predicted.site)
            with tempfile.TemporaryDirectory() as folder:
                SAELens().write(PortableSAE.of(sae, source), Path(folder))
                comparison.compare(f"{name} -> SAELens", (sae.encode(x), sae(x).x_hat), theirs(Path(folder), x))
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_fixture(name, Path(folder))
            expected = load_file(Path(folder, "expected.safetensors"))
            ours, x = SavedSAE.open(folder).sae, expected["x"]
            found = (ours.encode(x), ours(x).x_hat)
            comparison.compare(f"SAELens {name} -> ours", (expected["latents"], expected["x_hat"]), found)
    comparison.end()


def main() -> None:
    parser = argparse.ArgumentParser(description="Files by SAELens' own code, and a check against it.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    if parser.parse_args().check:
        check()
        return
    for name in CASES:
        write_fixture(name, FIXTURES / name)


if __name__ == "__main__":
    main()
