"""Parameters, bytes and FLOPs, worked out from shapes: nothing is loaded.

A product of (T, D) with (D, F) counts 2 T D F floating-point operations (FLOPs). Axes: T tokens, D width read, O width
predicted, F latents, k latents kept.
"""

from dataclasses import dataclass, replace

from lightsae.estimate.plan import RunPlan
from lightsae.lm import describe
from lightsae.lm.config import load_config, truncated
from lightsae.lm.description import flops_per_token
from lightsae.lm.load import on_shapes, skeleton
from lightsae.lm.placement import BYTES, rounded_matrices, rounded_to
from lightsae.sae import SparseAutoencoder
from lightsae.sae.mechanisms import Gated, TopK

# Adam keeps two numbers beside each weight, and its gradient is a third; all in float32.
COPIES_IN_TRAINING = 4


@dataclass(frozen=True)
class SAECosts:
    """What one SAE costs.

    Attributes:
        parameters: Trained numbers.
        dense: FLOPs per token of a step in products with whole matrices.
        sparse: FLOPs per token of a step in products with the rows of the latents that fire.
        inference: FLOPs per token of encoding and decoding alone.
    """

    parameters: int
    dense: int
    sparse: int
    inference: int


def sae_costs(sae: SparseAutoencoder) -> SAECosts:
    """Return the costs of an SAE, which needs no storage.

    Dense latents: encoding 2DF and decoding 2FO, and backward once more for each matrix and once for the latents, 2DF +
    4FO. Latents that a TopK or one of its kind selects: encoding 2DF, and from there on only rows of the matrices: 2kO
    to decode, 4kO and 2kD backward. A second step encodes and decodes twice. Terms that come and go with dead latents
    (AuxK, `pre_act`) are left out.
    """
    parameters = sum(parameter.numel() for parameter in sae.parameters())
    d_in, d_out, latents, mechanism = sae.d_in, sae.d_out, sae.d_sae, sae.mechanism
    encode, decode = 2 * d_in * latents, 2 * latents * d_out
    if isinstance(mechanism, TopK):
        rows = 2 * mechanism.k * (3 * d_out + d_in)
        inference = mechanism.passes * (encode + 2 * mechanism.k * d_out)
        dense, sparse = mechanism.passes * encode, mechanism.passes * rows
        if mechanism.multi_k is not None:
            dense, sparse = dense + encode, sparse + 2 * mechanism.multi_k * (3 * d_out + d_in)
        return SAECosts(parameters, dense, sparse, inference)
    inference = mechanism.passes * (encode + decode)
    dense = mechanism.passes * (2 * encode + 3 * decode)
    if isinstance(mechanism, Gated):
        dense += 2 * decode  # from the gate alone, by a decoder that gets no gradient
    return SAECosts(parameters, dense, 0, inference)


@dataclass(frozen=True)
class LanguageModelCosts:
    """What the language models of a run cost.

    Attributes:
        parameters: Of what is loaded.
        site: FLOPs per token up to the last site that is read.
        whole: FLOPs per token of the whole main model, with its head; 0 if it has none.
        below: FLOPs per token of what a spliced pass has in common with an untouched one: the blocks before the site.
        vocabulary: Logits per token.
        hidden: Numbers per token that a block holds at once, roughly.
        rounded: Of the parameters, those that are rounded.
        rounded_bytes: What these take.
    """

    parameters: int = 0
    site: int = 0
    whole: int = 0
    below: int = 0
    vocabulary: int = 0
    hidden: int = 0
    rounded: int = 0
    rounded_bytes: int = 0


def language_model_costs(plan: RunPlan, whole: bool) -> LanguageModelCosts:
    """Return the costs of all models that a run reads; nothing where it reads files or a synthetic world.

    Args:
        plan: Of the run.
        whole: Whether the main model is loaded with all its blocks and its head.
    """
    settings = plan.data
    if not settings.reads_text:
        return LanguageModelCosts()
    parameters = site_flops = rounded = rounded_bytes = 0
    main = LanguageModelCosts()
    for name in dict.fromkeys([settings.model, *(site.model for site in plan.sites)]):
        revision = settings.model_revision if name == settings.model else None
        config = load_config(name, revision, settings.trust_remote_code)
        outline = describe(name, revision=revision, trust_remote_code=settings.trust_remote_code)
        sites = [site.site for site in plan.sites if site.model == name]
        site_flops += flops_per_token(outline, sites, settings.context_size) if sites else 0
        layers = [outline.site(site).layer for site in sites]
        known = [layer for layer in layers if layer is not None]
        needed, mode = outline.model, outline.shapes_only
        if not whole and sites and len(known) == len(layers):
            small = truncated(config, max(known) + 1)
            needed, mode = skeleton(name, small, settings.trust_remote_code)
            needed = needed.base_model
        assert mode is not None, "an outline has no weights"
        with on_shapes(mode):
            needed.tie_weights()
        parameters += sum(parameter.numel() for parameter in needed.parameters())
        if (to := rounded_to(settings.quantization, config)) is not None:
            count = sum(matrix.numel() for matrix in rounded_matrices(needed))
            rounded, rounded_bytes = rounded + count, rounded_bytes + int(BYTES[to] * count)
        if name == settings.model:
            text = config.get_text_config()
            inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
            main = LanguageModelCosts(
                whole=flops_per_token(outline, [], settings.context_size) if outline.has_next_token_head else 0,
                below=min((flops_per_token(outline, [site], settings.context_size) for site in sites), default=0),
                vocabulary=text.vocab_size if outline.has_next_token_head else 0,
                hidden=6 * text.hidden_size + 3 * inner,
            )
    below = main.below if main.whole else 0
    return replace(
        main, parameters=parameters, site=site_flops, below=below, rounded=rounded, rounded_bytes=rounded_bytes
    )


def splicing_flops(plan: RunPlan, model: LanguageModelCosts, *, first: bool) -> int:
    """Return the FLOPs of the spliced passes of one validation on one device, per row of text.

    What lies below the site is computed once for a row, and once more for its ablations; above it the untouched pass,
    two for each SAE, and in the first validation three for each place that is ablated.
    """
    above = model.whole - model.below
    places = len({tuple(sae.widths.predicted) for sae in plan.saes.values()})
    passes = model.below + above * (1 + 2 * len(plan.saes))
    if first:
        passes += places * (model.below + 3 * above)
    return passes * plan.data.context_size
