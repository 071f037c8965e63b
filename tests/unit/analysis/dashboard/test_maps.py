import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.fake_dictionary import fake_tables
from lightsae.analysis.dashboard import Colouring
from lightsae.analysis.dashboard.figures import write_figures
from lightsae.analysis.dashboard.maps import activation_map, decoder_map, principal_components
from lightsae.analysis.dashboard.tensorboard import write_tensorboard
from lightsae.errors import ConfigError


def test_principal_components_are_those_of_the_singular_values() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 20
    found, share = principal_components(x, 2)
    u, s, _ = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    expected = (u * s)[:, :2].abs()
    assert torch.allclose(torch.from_numpy(found).abs().double(), expected, atol=1e-4)
    assert share == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()))


def test_fewer_dimensions_than_the_plane_are_filled_up() -> None:
    found, share = principal_components(torch.tensor([[1.0], [3.0]]), 2)
    assert found.tolist() == [[-1, 0], [1, 0]]
    assert share == 1


@pytest.mark.parametrize(
    "points", [torch.zeros(0, 3), torch.ones(1, 3), torch.ones(5, 3)], ids=["none", "one", "equal"]
)
def test_points_that_do_not_differ_lie_in_one_place(points: torch.Tensor) -> None:
    found, share = principal_components(points, 2)
    assert found.tolist() == [[0, 0]] * len(points)
    assert share == 0


def test_components_of_many_wide_points_are_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 600, generator=generator) / torch.arange(1, 601)
    found, share = principal_components(x, 64)
    values, directions = torch.linalg.eigh((x - x.mean(0)).double().T @ (x - x.mean(0)).double())
    assert share == pytest.approx(float(values[-64:].sum() / values.sum()), rel=0.02)
    assert np.abs(np.corrcoef(found[:, 0], (x.double() @ directions[:, -1]).numpy())[0, 1]) > 0.95


def test_a_map_of_directions_links_the_features_and_ignores_their_lengths() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    live = torch.arange(0, 40, 2)
    one = decoder_map(rows, features=live, method="pca")
    other = decoder_map(rows * torch.rand(40, 1).add(0.5), features=live, method="pca")
    assert one.links is not None
    assert one.links.tolist() == live.tolist()
    np.testing.assert_allclose(one.coordinates, other.coordinates, atol=1e-5)
    assert one.method.startswith("PCA")


def test_a_sample_says_so_and_keeps_points_and_what_they_say_together() -> None:
    x = torch.arange(500.0)[:, None].repeat(1, 3)
    colours = [Colouring("value", x[:, 0].numpy()), Colouring("class", [str(int(v)) for v in x[:, 0]])]
    drawn = activation_map(
        x, name="before", colours=colours, texts=[str(i) for i in range(500)], method="pca", max_points=60
    )
    assert "60 of 500 tokens, drawn with seed 0" in drawn.method
    assert drawn.texts is not None
    assert [float(text) for text in drawn.texts] == list(drawn.colours[0].values)
    assert list(drawn.colours[1].values) == list(drawn.texts)
    assert np.corrcoef(drawn.coordinates[:, 0], drawn.colours[0].values)[0, 1] == pytest.approx(1)


def test_without_umap_components_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    rows = torch.randn(50, 4)
    assert decoder_map(rows).method.startswith("PCA")
    with pytest.raises(ConfigError, match="pip install umap-learn"):
        decoder_map(rows, method="umap")


def test_umap_keeps_clusters_together_and_repeats() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 80, generator=draw)
    rows = centres.repeat_interleave(40, 0) + 0.2 * torch.randn(80, 80, generator=draw)
    one, again = decoder_map(rows, method="umap"), decoder_map(rows, method="umap")
    np.testing.assert_array_equal(one.coordinates, again.coordinates)
    assert "seed 0" in one.method
    assert torch.get_num_threads() == 1  # as conftest.py set it
    a, b = one.coordinates[:40], one.coordinates[40:]
    apart = np.linalg.norm(a.mean(0) - b.mean(0))
    assert apart > 2 * max(a.std(), b.std())


def test_points_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="NaN"):
        decoder_map(torch.full((40, 3), torch.nan))


def test_figures_are_pictures(tmp_path: Path) -> None:
    one = decoder_map(torch.randn(64, 5), method="pca")
    tokens = activation_map(
        torch.randn(9, 5), name="$x_1", colours=[Colouring("_", ["_a", "$", "b"] * 3)], method="pca"
    )
    written = write_figures(tmp_path, fake_tables(64), neurons=fake_tables(16), maps=[one, tokens])
    assert [p.name for p in written] == ["density.png", "labels.png", "coherence.png", "map_1.png", "map_2.png"]
    for path in written:
        assert len(set(Image.open(path).convert("L").resize((60, 60)).tobytes())) > 3


def test_tensorboard_gets_directions_with_labels(tmp_path: Path) -> None:
    tables = fake_tables(64)
    write_tensorboard(tmp_path, tables, W_dec=torch.randn(64, 5))
    assert list(tmp_path.glob("events.out.tfevents.*"))
    lines = next(tmp_path.rglob("metadata.tsv")).read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["feature", "label", "tier", "frequency", "tokens"]
    assert len(lines) == 65
    assert all(line.count("\t") == 4 for line in lines)
    assert [line.split("\t")[1] == "unlabelled" for line in lines[1:]] == [
        label is None for label in tables["features"]["label"].to_pylist()
    ]
