"""SAELens' files, of all shapes and options: read as the function that they are, written so that they read again."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.layout_files.sae_lens import ARCHITECTURES, TRANSCODERS, in_old_terms, write_sae_lens
from lightsae.errors import FormatError
from lightsae.formats.convert import convert
from lightsae.formats.layouts import PortableSAE, Source
from lightsae.formats.layouts.portable import Pursuit
from lightsae.formats.layouts.sae_lens import SAELens
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import MECHANISMS, VARIANTS, Refinements, SiteRef, SparseAutoencoder, Widths

LAYOUT = SAELens()
SEEDS = range(12)
NORMALISED = ("layer_norm", "constant_norm_rescale")
PURSUIT = "matching_pursuit"


def close(found: Tensor, expected: Tensor) -> None:
    found, expected = found.detach(), expected.detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max().clamp_min(1)))


def tokens(width: int, seed: int) -> Tensor:
    return 3 * torch.randn(40, width, generator=torch.Generator().manual_seed(1000 + seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", SEEDS)
def test_files_of_any_shape_are_read_as_the_function_that_they_are(
    architecture: str, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(f"{architecture} {seed}")
    d_in, d_sae, d_out = draw.randint(2, 9), draw.randint(1, 30), draw.randint(1, 9)
    function = write_sae_lens(
        tmp_path,
        architecture,
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_out,
        k=draw.randint(1, d_sae),
        subtracts=draw.random() < 0.5,
        rescales=draw.random() < 0.5,
        normalises="none" if architecture in TRANSCODERS else draw.choice(["none", *NORMALISED]),
        seed=seed,
    )
    sae, x = SavedSAE.open(tmp_path).sae, tokens(d_in, seed)
    latents, x_hat = function(x)
    close(sae.encode(x), latents)
    close(sae(x).x_hat, x_hat)
    assert sae.predicts_another_site == (architecture in TRANSCODERS)


def portable(seed: int) -> PortableSAE:
    """An SAE of any kind that SAELens has."""
    draw, generator = random.Random(f"portable {seed}"), torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    transcoder, d_in, d_sae = draw.random() < 0.5, draw.randint(1, 9), draw.randint(1, 30)
    d_out = draw.randint(1, 9) if transcoder else d_in
    activation = draw.choice(["relu", "jumprelu"] if transcoder else ["relu", "jumprelu", "topk", "gated", PURSUIT])
    gated = activation == "gated"
    k = {"topk": draw.randint(1, d_sae), "jumprelu": draw.choice([None, 5])}.get(activation)
    source = Source(
        model=draw.choice([None, "openai-community/gpt2", "google/gemma-2-2b", "somebody/else"]),
        site=draw.choice([None, "resid_post.3", "attn_z.0", "mlp_in.2", "some.module.output", "blocks.1.hook_odd"]),
        target_site=draw.choice(["mlp_out.2", "some.module.5.input"]) if transcoder else None,
        context_size=draw.choice([None, 128]),
        sees_bos=draw.choice([None, False, True]),
        dataset=draw.choice([None, "owner/text"]),
    )
    token_norm = None if transcoder else draw.choice([None, "layer_norm", "rescale"])
    if activation == PURSUIT:
        W_dec, pursuit = drawn(d_sae, d_in), Pursuit(draw.random(), draw.choice([None, 4]), draw.random() < 0.5)
        parts = {"pursuit": pursuit, "subtracts_b_dec": True, "token_norm": token_norm, "source": source}
        return PortableSAE(activation, W_dec.T, torch.zeros(d_sae), W_dec, drawn(d_in), **parts)
    return PortableSAE(
        activation,
        drawn(d_in, d_sae),
        drawn(d_sae),
        drawn(d_sae, d_out),
        drawn(d_out),
        subtracts_b_dec=not transcoder and draw.random() < 0.5,
        k=k,
        threshold=drawn(d_sae).abs() if activation == "jumprelu" else None,
        r_mag=drawn(d_sae) if gated else None,
        b_mag=drawn(d_sae) if gated else None,
        W_skip=drawn(d_in, d_out) if transcoder and draw.random() < 0.5 else None,
        token_norm=token_norm,
        source=source,
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_is_written_is_read_again_bit_by_bit(seed: int, tmp_path: Path) -> None:
    sae = portable(seed)
    LAYOUT.write(sae, tmp_path)
    again = LAYOUT.read(tmp_path)
    assert again.source == replace(sae.source, layout="sae_lens")
    assert again.folded == ()
    for name in PortableSAE.__dataclass_fields__:
        before, after = getattr(sae, name), getattr(again, name)
        if name not in ("source", "folded"):
            assert torch.equal(before, after) if isinstance(before, Tensor) else before == after, name


WIDTHS = Widths.autoencoder(SiteRef("openai-community/gpt2", "resid_post.3"), 8)
ACROSS = Widths({SiteRef("builtin", "mlp_in.2"): 8}, {SiteRef("builtin", "mlp_out.2"): 5})
OURS: dict[str, Any] = {
    "ReLU": lambda: VARIANTS["ReLU"](WIDTHS, 24),
    "ReLU, unit norms": lambda: VARIANTS["ReLU"](WIDTHS, 24, decoder_norm="unit"),
    "TopK": lambda: VARIANTS["TopK"](WIDTHS, 24, k=4),
    "TopK, tokens normalised": lambda: VARIANTS["TopK"](
        WIDTHS, 24, k=4, refinements=Refinements(token_norm="layer_norm")
    ),
    "TopK, no centre": lambda: VARIANTS["TopK"](WIDTHS, 24, k=4, refinements=Refinements(centre_input=False)),
    "BatchTopK": lambda: VARIANTS["BatchTopK"](WIDTHS, 24, k=4),
    "JumpReLU": lambda: VARIANTS["JumpReLU"](WIDTHS, 24),
    "Gated": lambda: VARIANTS["Gated"](WIDTHS, 24),
    "Matryoshka": lambda: VARIANTS["Matryoshka"](WIDTHS, 24, MECHANISMS["BatchTopK"](k=4)),
    "Transcoder": lambda: VARIANTS["Transcoder"](ACROSS, 24, MECHANISMS["BatchTopK"](k=4)),
    "Transcoder, skip": lambda: VARIANTS["Transcoder"](ACROSS, 24, MECHANISMS["JumpReLU"](), skip=True),
}


def shaken(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """Scales, biases and thresholds other than those of a start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sae.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(0.3 + 2 * noise.abs() if "scale" in name or name.endswith(".threshold") else noise)
        if sae.widths.read == sae.widths.predicted:
            sae.output_scale.copy_(sae.input_scale)
    return sae.eval()


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("seed", range(3))
def test_our_variants_are_written_with_their_scales_folded(name: str, seed: int, tmp_path: Path) -> None:
    sae = shaken(OURS[name](), seed)
    LAYOUT.write(PortableSAE.of(sae, Source()), tmp_path)
    again, x = SavedSAE.open(tmp_path).sae, tokens(sae.d_in, seed)
    assert (sae.encode(x) > 0).any()
    close(again.encode(x), sae.encode(x))
    close(again(x).x_hat, sae(x).x_hat)


def test_every_variant_of_ours_has_a_form_or_is_refused_by_name() -> None:
    assert {name.partition(",")[0] for name in OURS} | {"Crosscoder", "GroupMax", "MatchingPursuit"} == set(VARIANTS)
    sites = {SiteRef("builtin", f"resid_post.{layer}"): 8 for layer in (1, 2)}
    with pytest.raises(FormatError, match="A Crosscoder reads several sites"):
        PortableSAE.of(VARIANTS["Crosscoder"](Widths(sites, sites), 24, MECHANISMS["BatchTopK"](k=4)), Source())


@torch.no_grad()
def test_a_matching_pursuit_takes_the_unit_of_the_activations(tmp_path: Path) -> None:
    """Its latents do, too: encoder and decoder share their directions."""
    sae = shaken(VARIANTS["MatchingPursuit"](WIDTHS, 24, 0.8), 0)
    sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec))
    for tied in (False, True):
        if tied:
            sae.W_enc.copy_(sae.W_dec.T)
            sae.b_enc.zero_()
            LAYOUT.write(PortableSAE.of(sae, Source()), tmp_path)
        else:
            with pytest.raises(FormatError, match=r"In a matching pursuit W_enc is W_dec\.T and b_enc is 0"):
                PortableSAE.of(sae, Source())
    again, x = SavedSAE.open(tmp_path).sae, tokens(8, 0)
    latents = sae.encode(x)
    assert len(set(latents.count_nonzero(1).tolist())) > 1
    close(again.encode(x), latents / sae.input_scale)
    close(again(x).x_hat, sae(x).x_hat)


@pytest.mark.parametrize("layout", ["sparsify", "dictionary_learning", "circuit_tracer"])
def test_layouts_without_a_matching_pursuit_say_so(layout: str, tmp_path: Path) -> None:
    write_sae_lens(tmp_path / "given", PURSUIT)
    with pytest.raises(FormatError, match=PURSUIT):
        convert(tmp_path / "given", layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_b_dec_without_a_part_is_left_out_and_said(tmp_path: Path) -> None:
    write_sae_lens(tmp_path, PURSUIT, subtracts=False)
    sae = LAYOUT.read(tmp_path)
    assert not sae.b_dec.any()
    assert sae.folded == ("no b_dec, since apply_b_dec_to_input is false",)


def test_a_checkpoint_of_a_matching_pursuit_has_its_scale_folded(tmp_path: Path) -> None:
    write_sae_lens(tmp_path, PURSUIT, config={"normalize_activations": "expected_average_only_in"})
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.25}))
    stored, sae = load_file(tmp_path / "sae_weights.safetensors"), LAYOUT.read(tmp_path)
    assert sae.pursuit == Pursuit(2.0, None, True)
    assert torch.equal(sae.W_dec, stored["W_dec"])
    assert torch.equal(sae.b_dec, 4 * stored["b_dec"])


def test_groups_have_no_form_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="SAELens has no SAE with groupmax"):
        LAYOUT.write(PortableSAE.of(VARIANTS["GroupMax"](WIDTHS, 24, k=4), Source()), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mechanism", ["TopK", "Gated"])
def test_a_transcoder_that_sae_lens_lacks_is_refused_with_nothing_written(mechanism: str, tmp_path: Path) -> None:
    settings = {"k": 4} if mechanism == "TopK" else {}
    sae = VARIANTS["Transcoder"](ACROSS, 24, MECHANISMS[mechanism](**settings))
    with pytest.raises(FormatError, match=f"no transcoder with {mechanism.lower()}"):
        LAYOUT.write(PortableSAE.of(sae, Source()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_description_that_is_written(tmp_path: Path) -> None:
    sae = PortableSAE.of(VARIANTS["BatchTopK"](WIDTHS, 24, k=4), Source(model="openai-community/gpt2", site="attn_z.3"))
    LAYOUT.write(sae, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_bytes())
    assert config["architecture"] == "jumprelu"
    assert config["reshape_activations"] == "hook_z"
    told = config["metadata"]
    assert (told["model_name"], told["hook_name"]) == ("gpt2-small", "blocks.3.attn.hook_z")
    assert told["hf_hook_name"] == "transformer.h.3.attn.c_proj.input"
    assert told["creator"].startswith("lightsae ")
    assert told["training_architecture_details"] == {"k": 4}


@pytest.mark.parametrize(
    ("metadata", "site"),
    [
        ({"hook_name": "blocks.7.hook_resid_post"}, "resid_post.7"),
        ({"hook_name": "blocks.7.hook_resid_mid"}, "blocks.7.hook_resid_mid"),
        ({"hook_name": "blocks.7.attn.hook_z", "hook_head_index": 3}, "blocks.7.attn.hook_z, head 3"),
        ({"hook_name": "blocks.7.ln2.hook_normalized", "hf_hook_name": "transformer.h.7.mlp.input"}, "mlp_in.7"),
        ({"hook_name": "blocks.7.hook_mlp_out", "hf_hook_name": "transformer.h.7.odd"}, "transformer.h.7.odd.output"),
        ({"hook_name": "blocks.7.hook_mlp_out", "hf_hook_name": "no path"}, "mlp_out.7"),
        ({"hook_name": "transformer.h.7"}, "resid_post.7"),
        ({"hook_name": None}, None),
    ],
)
def test_where_it_reads(metadata: dict[str, Any], site: str | None, tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard", metadata=metadata)
    assert LAYOUT.read(tmp_path).source.site == site


@pytest.mark.parametrize(
    ("metadata", "sees"),
    [
        ({"prepend_bos": True}, True),
        ({"prepend_bos": False}, False),
        ({"prepend_bos": None}, None),
        ({"prepend_bos": True, "exclude_special_tokens": True}, False),
        ({"prepend_bos": True, "exclude_special_tokens": False, "seqpos_slice": [None]}, True),
        ({"prepend_bos": True, "seqpos_slice": [1, None]}, False),
    ],
)
def test_whether_it_was_trained_on_bos(metadata: dict[str, Any], sees: bool | None, tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard", metadata=metadata)
    assert LAYOUT.read(tmp_path).source.sees_bos is sees


@pytest.mark.parametrize("named", ["cfg.json", "sae_weights.safetensors"])
def test_a_file_of_the_folder_is_as_good(named: str, tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard")
    assert SavedSAE.open(tmp_path / named).sae.d_sae == 16


def test_before_version_6_topk_is_an_activation(tmp_path: Path) -> None:
    function = write_sae_lens(tmp_path, "topk", config={"k": None})
    old = {"architecture": "standard", "activation_fn": "topk", "activation_fn_kwargs": {"k": 4}}
    in_old_terms(tmp_path, **old, sae_lens_training_version="3.9.1")
    sae, x = SavedSAE.open(tmp_path).sae, tokens(6, 0)
    close(sae.encode(x), function(x)[0])


@pytest.mark.parametrize(("given", "noted"), [(True, True), (False, False), (None, False)])
def test_before_version_6_normalisation_is_a_switch(given: bool | None, noted: bool, tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard")
    in_old_terms(tmp_path, normalize_activations=given)
    assert bool(LAYOUT.read(tmp_path).folded) == noted


def test_before_version_6_bos_and_the_centre_are_there_unless_denied(tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard")
    in_old_terms(tmp_path, prepend_bos=None, apply_b_dec_to_input=None)
    sae = LAYOUT.read(tmp_path)
    assert (sae.source.sees_bos, sae.subtracts_b_dec, sae.source.site) == (True, True, "resid_pre.7")


@pytest.mark.parametrize("value", [1.0, 1.7])
def test_the_factor_of_a_finetuning_goes_into_the_decoder(value: float, tmp_path: Path) -> None:
    function = write_sae_lens(tmp_path, "standard", tensors={"scaling_factor": torch.full((16,), value)})
    in_old_terms(tmp_path, finetuning_scaling_factor=True)
    sae, x = SavedSAE.open(tmp_path).sae, tokens(6, 0)
    (latents, x_hat), b_dec = function(x), load_file(tmp_path / "sae_weights.safetensors")["b_dec"]
    close(sae.encode(x), latents)
    close(sae(x).x_hat, value * (x_hat - b_dec) + b_dec)
    assert bool(LAYOUT.read(tmp_path).folded) == (value != 1)


def test_a_factor_that_nobody_announced_is_refused(tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard", tensors={"scaling_factor": torch.full((16,), 2.0)})
    with pytest.raises(FormatError, match=r"scaling_factor is not 1, and cfg\.json does not say"):
        SavedSAE.open(tmp_path)


def test_a_scale_that_the_file_lacks_is_said(tmp_path: Path) -> None:
    function = write_sae_lens(tmp_path, "standard", config={"normalize_activations": "expected_average_only_in"})
    saved, x = SavedSAE.open(tmp_path), tokens(6, 0)
    close(saved.sae.encode(x), function(x)[0])
    assert "expected_average_only_in" in saved.provenance.values["folded"][0]


def checkpoint(folder: Path, architecture: str, scale: float | None) -> Tensor:
    """Write a training run's checkpoint of BatchTopK; return W_dec."""
    options = {"k": 3.5, "rescale_acts_by_decoder_norm": True, "normalize_activations": "expected_average_only_in"}
    threshold = {"topk_threshold": torch.tensor(2.0, dtype=torch.float64)}
    write_sae_lens(folder, "standard", config={**options, "architecture": architecture}, tensors=threshold)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale, "has_whitening": False}))
    return load_file(folder / "sae_weights.safetensors")["W_dec"]


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_checkpoint_of_batch_topk_has_its_scale_and_norms_folded(architecture: str, tmp_path: Path) -> None:
    scale, W_dec = 0.25, checkpoint(tmp_path, architecture, 0.25)
    stored = load_file(tmp_path / "sae_weights.safetensors")
    sae, x = SavedSAE.open(tmp_path).sae, tokens(6, 0)
    norms = W_dec.norm(dim=1)
    z = ((x * scale - stored["b_dec"]) @ stored["W_enc"] + stored["b_enc"]) * norms
    latents = torch.where(z > 2, z, 0)
    # An export's latents are of unit rows in raw units.
    close(sae.encode(x), latents / scale)
    close(sae(x).x_hat, ((latents / norms) @ W_dec + stored["b_dec"]) / scale)
    assert len(LAYOUT.read(tmp_path).folded) == 2


@pytest.mark.parametrize("scale", [0, -1.0, "big", True, [1]])
def test_a_scale_is_a_number_above_0(scale: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path, "batchtopk", scale)
    with pytest.raises(FormatError, match="a number above 0"):
        SavedSAE.open(tmp_path)


def test_rows_of_zeros_take_no_place_where_latents_are_rescaled(tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "topk", k=2, rescales=True)
    stored = load_file(tmp_path / "sae_weights.safetensors")
    stored["W_dec"][:8] = 0
    save_file(stored, tmp_path / "sae_weights.safetensors")
    sae, x = SavedSAE.open(tmp_path).sae, tokens(6, 0)
    z = ((x - stored["b_dec"]) @ stored["W_enc"] + stored["b_enc"]) * stored["W_dec"].norm(dim=1)
    assert not sae.encode(x)[:, :8].any()
    close(sae.encode(x).sum(1), z[:, 8:].topk(2).values.relu().sum(1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "temporal"}, "a temporal SAE: it attends to the tokens before, and lightsae encodes each"),
        ({"architecture": "matching_pursuit"}, "holds 'W_enc', which an SAE of this layout does not have"),
        ({"architecture": "matching_pursuit", "max_iterations": 0}, "max_iterations is 0; it is 1 or more"),
        ({"architecture": "matching_pursuit", "residual_threshold": "low"}, "where float should be"),
        ({"architecture": "jumprelus"}, "Did you mean 'jumprelu'"),
        ({"architecture": None}, "has no architecture"),
        ({"architecture": 3}, "architecture is 3, where str should be"),
        ({"architecture": "topk"}, "without k"),
        ({"architecture": "topk", "k": 0}, "k is 0; it is 1 or more"),
        ({"architecture": "topk", "k": 17}, "k is 17"),
        ({"architecture": "topk", "k": True}, "k is True, where int should be"),
        ({"architecture": "jumprelu"}, "lacks the tensor 'threshold'"),
        ({"architecture": "gated"}, "lacks the tensor 'b_gate'"),
        ({"architecture": "transcoder"}, "apply_b_dec_to_input is true, and no transcoder subtracts b_dec"),
        ({"normalize_activations": "covariance_whitening"}, "which the weights do not hold"),
        ({"normalize_activations": "other"}, "normalize_activations is 'other'; known: none"),
        ({"apply_b_dec_to_input": "yes"}, "where bool should be"),
        ({"d_sae": 15}, "W_enc has shape"),
        ({"d_in": 7}, "W_enc has shape"),
        ({"metadata": {"sae_lens_version": "new"}}, "sae_lens_version is 'new', which is no version"),
        ({"metadata": 3}, "metadata is 3, where dict should be"),
        ({"metadata": {"sae_lens_version": "5.9.1"}, "activation_fn": "tanh-relu"}, "relu and topk are read"),
    ],
)
def test_what_no_sae_of_ours_is_ends_in_one_line(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard", config=config)
    with pytest.raises(FormatError) as caught:
        SavedSAE.open(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("normalises", NORMALISED)
def test_a_transcoder_that_normalises_tokens_is_refused(normalises: str, tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "transcoder", normalises=normalises)
    with pytest.raises(FormatError, match=f"normalize_activations is {normalises}, of a transcoder"):
        SavedSAE.open(tmp_path)


def test_a_tensor_that_is_no_part_of_it_is_refused(tmp_path: Path) -> None:
    write_sae_lens(tmp_path, "standard", tensors={"W_more": torch.ones(3)})
    with pytest.raises(FormatError, match="holds 'W_more'"):
        SavedSAE.open(tmp_path)
