"""Shared by all tests: no network, shape annotations checked at run time, few threads."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

import torch  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("lightsae", "beartype.beartype")
torch.set_num_threads(1)
