"""Figures of groups of tokens: what the group's tokens alone would give, and nothing where there are no groups."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.roles import ROLES
from lightsae.analysis.evaluate.document_sums import DocumentSums
from lightsae.analysis.evaluate.faithfulness import Spliced
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.groups import Groups, GroupSums
from lightsae.analysis.evaluate.measure import Measured, measure
from lightsae.analysis.evaluate.summaries import group_figures
from lightsae.metrics import GroupedReconstruction
from lightsae.sae import SiteRef, TopK, Widths
from lightsae.sae.sparse_ops import as_sparse

T, D, F = 400, 6, 16
SITE = SiteRef("tiny", "resid_post.0")
DATASETS = ("chat", "texts")
USER, ASSISTANT = ROLES.index("user"), ROLES.index("assistant")


@pytest.fixture
def sae() -> TopK:
    torch.manual_seed(0)
    return TopK(Widths.autoencoder(SITE, D), d_sae=F, k=3).eval()


@pytest.fixture
def batch() -> ActivationBatch:
    torch.manual_seed(1)
    # What the assistant says lies elsewhere, so that a mean of all would give other figures.
    roles = torch.randint(0, 2, (T,))
    x = torch.randn(T, D) + 3 * roles[:, None]
    batch = ActivationBatch.without_text(SITE, x, torch.arange(T))
    return replace(
        batch,
        tokens=torch.zeros(T, dtype=torch.long),
        positions=torch.ones(T, dtype=torch.long),
        documents=torch.arange(T) // 20,
        sinks={SITE: torch.arange(T) % 50 == 0},
        roles=torch.where(roles == 1, ASSISTANT, USER).to(torch.uint8),
        datasets=torch.arange(T) // 20 % 2,
    )


def measured(sae: TopK, batches: list[ActivationBatch], groups: Groups | None) -> Measured:
    read = ((one, np.ones((1, len(one)), np.bool_)) for one in batches)
    return measure({"sae": sae}, read, torch.zeros(D), np.ones(1), 20, None, groups and {"sae": groups})["sae"]


def test_they_are_those_of_validation(sae: TopK, batch: ActivationBatch) -> None:
    parts = [
        batch.each(lambda values, first=first: values[first : first + 150], rows_shape=None) for first in (0, 150, 300)
    ]
    found = group_figures(measured(sae, parts, Groups(DATASETS)), None, 0)
    output = sae(batch.activations[SITE])
    latents = as_sparse(output.latents)
    fires = torch.zeros(T, F, dtype=torch.long)
    fires[latents.pattern.token_of, latents.indices.long()] = (latents.values > 0).long()
    for by, names, numbers in (("roles", ROLES, batch.roles), ("datasets", DATASETS, batch.datasets)):
        metric = GroupedReconstruction(names, D, F)
        counts = torch.zeros(len(names), F, dtype=torch.long).index_add_(0, numbers.long(), fires)
        metric.update(batch.activations[SITE], output.x_hat, fires.sum(1), counts, numbers, batch.sinks[SITE])
        expected = {key: float(value) for key, value in metric.compute().items()}
        told = {f"{key}/{name}": one for name, figures in found[by].items() for key, one in figures.items()}
        assert len(expected) == 10
        for key, value in expected.items():
            if key.startswith("tokens"):
                assert told[key.replace("tokens", "l0")].tokens == value
            else:
                assert told[key].value == pytest.approx(value, rel=1e-5), key
    assert set(found["roles"]) == {"user", "assistant"}
    assert set(found["roles"]["user"]) <= set(DEFINITIONS)
    assert found["roles"]["user"]["fve"].low < found["roles"]["user"]["fve"].value < found["roles"]["user"]["fve"].high


def test_intervals_go_by_the_documents_that_have_the_group(sae: TopK, batch: ActivationBatch) -> None:
    # Nine of twenty documents: too few, however many tokens.
    few = torch.where(batch.documents < 9, ASSISTANT, USER).to(torch.uint8)
    figures = group_figures(measured(sae, [replace(batch, roles=few)], Groups(DATASETS)), None, 0)["roles"]
    assert figures["assistant"]["fve"].low is None
    assert figures["user"]["fve"].low is not None


def test_without_roles_and_mixtures_there_are_none(sae: TopK, batch: ActivationBatch) -> None:
    plain = replace(batch, roles=None, datasets=None)
    assert group_figures(measured(sae, [plain], Groups(DATASETS)), None, 0) == {}
    assert group_figures(measured(sae, [batch], None), None, 0) == {}


def test_what_splicing_costs_a_group_stands_beside(sae: TopK, batch: ActivationBatch) -> None:
    names = ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl", "top1")
    names += ("ce_spliced_no_sinks", "ce_zero_no_sinks", "kl_no_sinks")
    values = {name: np.array([2.0, 7.0, 4.0]) for name in names}
    values |= {"ce_zero": np.array([6.0, 7.0, 9.0]), "ce_spliced": np.array([3.0, 7.0, 4.0]), "predictions": np.ones(3)}
    sums, documents = GroupSums(), np.array([0, 0, 1])
    sums.add({("roles", "user"): np.array([True, False, True])}, documents, values)
    sums.add({("roles", "user"): np.zeros(3, np.bool_)}, documents, values)
    own = measured(sae, [batch], Groups(DATASETS))
    figures = group_figures(own, Spliced(DocumentSums(), sums), 0)["roles"]
    # (7.5 - 3.5) / (7.5 - 3): means over the two predictions of the user's words.
    assert figures["user"]["ce_recovered"].value == pytest.approx(4.0 / 4.5)
    assert figures["user"]["ce_recovered"].tokens == 2
    assert "ce_recovered" not in figures["assistant"]
