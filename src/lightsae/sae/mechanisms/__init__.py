"""Sparsity mechanisms, one per file. A new one is a file and a line here, in the order in which the help lists them."""

import inspect

# isort: off
from lightsae.sae.mechanisms.base import Encoding as Encoding, Mechanism as Mechanism
from lightsae.sae.mechanisms.relu import ReLU as ReLU
from lightsae.sae.mechanisms.topk import TopK as TopK
from lightsae.sae.mechanisms.batch_topk import BatchTopK as BatchTopK
from lightsae.sae.mechanisms.group_max import GroupMax as GroupMax
from lightsae.sae.mechanisms.jumprelu import JumpReLU as JumpReLU
from lightsae.sae.mechanisms.gated import Gated as Gated
from lightsae.sae.mechanisms.matching_pursuit import MatchingPursuit as MatchingPursuit
# isort: on

MECHANISMS: dict[str, type[Mechanism]] = {
    name: kind
    for name, kind in list(globals().items())
    if isinstance(kind, type) and issubclass(kind, Mechanism) and not inspect.isabstract(kind)
}
