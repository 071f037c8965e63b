"""A layer of a transcoder set as circuit-tracer has it."""

from functools import partial
from pathlib import Path

import yaml
from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, jump


def make(
    folder: Path,
    *,
    jumps: bool = True,
    skips: bool = False,
    read: str = "mlp.hook_in",
    alone: bool = False,
    layer: int = 3,
) -> tuple[Path, Function]:
    config = {"model_kind": "transcoder_set", "model_name": "Qwen/Qwen3-0.6B", "feature_input_hook": read}
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"feature_output_hook": "hook_mlp_out", "scan": "x/y"}))
    W_enc, b_enc, W_dec, b_dec = drawn(F, D), drawn(F), drawn(F, D, seed=1), drawn(D)
    threshold, W_skip = drawn(F).abs(), drawn(D, D)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    tensors |= {"activation_function.threshold": threshold} if jumps else {}
    tensors |= {"W_skip": W_skip} if skips else {}
    save_file(tensors, folder / f"layer_{layer}.safetensors")

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        z = x @ W_enc.T + b_enc
        latents = jump(z, threshold) if jumps else z.relu()
        y = latents @ W_dec + b_dec
        return latents, y + x @ W_skip.T if skips else y

    return folder if alone else folder / f"layer_{layer}.safetensors", function


CASES: Cases = {
    "jumprelu": (
        make,
        {"model": "Qwen/Qwen3-0.6B", "site": "mlp_in.3", "target_site": "mlp_out.3", "sees_bos": None},
    ),
    "skip": (partial(make, skips=True), {}),
    "relu, a folder": (partial(make, jumps=False, alone=True), {}),
    "another hook": (
        partial(make, read="hook_resid_mid"),
        {"site": "blocks.3.hook_resid_mid", "target_site": "mlp_out.3"},
    ),
}
