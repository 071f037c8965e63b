"""The registry: versions of feature dictionaries that are published, promoted by a policy, and rolled back."""

from lightsae.production.registry.actions import Outcome, promote, publish, rollback
from lightsae.production.registry.loading import Promoted, Verified, load_channel, verify
from lightsae.production.registry.policy import Policy, PolicyRefusal, read_policy

__all__ = [
    "Outcome",
    "Policy",
    "PolicyRefusal",
    "Promoted",
    "Verified",
    "load_channel",
    "promote",
    "publish",
    "read_policy",
    "rollback",
    "verify",
]
