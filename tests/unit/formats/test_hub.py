"""Addresses of the Hub and of the list of releases: what is fetched and chosen, and what goes wrong in one line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.fake_hub import COMMIT, FakeHub, hub
from helpers.layout_files import D, drawn, gemma_scope, gemma_scope_2, llama_scope, pickled
from lightsae.errors import FormatError
from lightsae.formats import hub as reading
from lightsae.formats.layouts import LAYOUTS
from lightsae.formats.layouts.source import Source
from lightsae.formats.native import save_sae
from lightsae.formats.releases import find, release, releases
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import TopK, Widths

__all__ = ["hub"]
SCOPE = "google/gemma-scope-2b-pt-res"


def with_l0s(hub: FakeHub, *l0s: int) -> Any:
    """Gemma Scope SAEs of one layer and width; returns the function that all of them have."""
    folder = hub.repository(SCOPE)
    functions = [gemma_scope.make(folder, f"layer_20/width_16k/average_l0_{l0}")[1] for l0 in l0s]
    return functions[0]


def refused(address: str) -> str:
    with pytest.raises(FormatError) as caught:
        SavedSAE.open(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_address_opens_as_its_files_do(hub: FakeHub) -> None:
    function = with_l0s(hub, 71, 139)
    saved = SavedSAE.open(f"hf://{SCOPE}/layer_20/width_16k/average_l0_71")
    x = drawn(8, D)
    torch.testing.assert_close(saved.sae.encode(x), function(x)[0])
    assert hub.fetched == ["layer_20/width_16k/average_l0_71/params.npz"]
    assert saved.provenance.model == "google/gemma-2-2b"
    assert saved.provenance.values["address"] == f"hf://{SCOPE}@{COMMIT}/layer_20/width_16k/average_l0_71"


def test_the_address_in_the_provenance_opens_again(hub: FakeHub) -> None:
    with_l0s(hub, 71)
    first = SavedSAE.open(f"hf://{SCOPE}@main/layer_20/width_16k")
    again = SavedSAE.open(Path(first.provenance.values["address"]))
    assert again.sha256 == first.sha256
    assert hub.asked == ["main", "main", COMMIT, COMMIT]


@pytest.mark.parametrize(
    "address",
    [
        "gemma-scope-2b-pt-res/layer_20/width_16k",
        "gemma-scope-2b-pt-res/layer_20/width_16k/canonical",
        "gemma-scope-2b-pt-res-canonical/layer_20/width_16k/canonical",
        f"hf://{SCOPE}/layer_20/width_16k",
    ],
)
def test_of_several_l0_the_one_nearest_to_100_is_taken_and_said(
    address: str, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    with_l0s(hub, 139, 20, 71, 38)
    saved = SavedSAE.open(address)
    assert saved.provenance.values["published"] == {"l0": 71.0}
    assert saved.provenance.values["address"].endswith("average_l0_71")
    assert "has average_l0_20, average_l0_38, average_l0_71, average_l0_139; average_l0_71 is taken" in caplog.text


def test_one_l0_alone_needs_no_word(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    with_l0s(hub, 71)
    SavedSAE.open("gemma-scope-2b-pt-res/layer_20/width_16k")
    assert not caplog.records


def test_examples_beside_an_sae_are_not_fetched(hub: FakeHub) -> None:
    path = "resid_post/layer_13_width_16k_l0_small"
    here, _ = gemma_scope_2.make(hub.repository("google/gemma-scope-2-1b-pt"), path, l0=20)
    (here / "examples.safetensors").write_bytes(b"large")
    saved = SavedSAE.open("gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_small")
    assert sorted(hub.fetched) == [f"{path}/config.json", f"{path}/params.safetensors"]
    assert [site["site"] for site in saved.widths["read"]] == ["resid_post.13"]


def test_ids_of_the_list_stand_for_paths(hub: FakeHub) -> None:
    llama_scope.make(hub.repository("fnlp/Llama3_1-8B-Base-LXR-8x"))
    saved = SavedSAE.open("llama_scope_lxr_8x/l24r_8x")
    assert saved.provenance.values["layout"] == "llama_scope"
    assert len(hub.fetched) == 2


def test_a_repository_with_one_sae_needs_no_path(hub: FakeHub) -> None:
    folder = hub.repository("Goodfire/Llama-3.1-8B-Instruct-SAE-l19")
    pickled.linear(folder, "Llama-3.1-8B-Instruct-SAE-l19.pth", "_linear")
    for address in ("Llama-3.1-8B-Instruct-SAE-l19", "hf://Goodfire/Llama-3.1-8B-Instruct-SAE-l19"):
        assert SavedSAE.open(address).provenance.values["layout"] == "goodfire"


def test_an_export_of_ours_opens_with_its_address(hub: FakeHub) -> None:
    sae = TopK(Widths.of(D), 8, k=2)
    save_sae(sae, hub.repository("somebody/saes") / "run" / "sae")
    saved = SavedSAE.open("hf://somebody/saes/run/sae")
    assert torch.equal(saved.sae.W_enc, sae.W_enc)
    assert saved.provenance.values["address"] == f"hf://somebody/saes@{COMMIT}/run/sae"


def test_what_is_there_locally_is_not_asked_for(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = gemma_scope.make(tmp_path, "gemma-scope-2b-pt-res/layer_20/width_16k")[1]
    x = drawn(8, D)
    saved = SavedSAE.open("gemma-scope-2b-pt-res/layer_20/width_16k")
    torch.testing.assert_close(saved.sae.encode(x), function(x)[0])
    assert hub.asked == []


def test_what_was_fetched_opens_without_a_network(hub: FakeHub) -> None:
    with_l0s(hub, 71)
    address = f"hf://{SCOPE}/layer_20/width_16k"
    online = SavedSAE.open(address)
    hub.offline = True
    assert SavedSAE.open(address).sha256 == online.sha256
    assert "the repository has no 'layer_3'" in refused(f"hf://{SCOPE}/layer_3")


def test_without_a_network_and_a_cache_one_line_says_so(hub: FakeHub) -> None:
    hub.offline = True
    assert refused(f"hf://{SCOPE}/layer_20") == (
        f"'hf://{SCOPE}/layer_20' cannot be fetched: HF_HUB_OFFLINE is set, and the Hub's cache has no files of "
        f"'{SCOPE}'."
    )


def test_the_real_library_says_the_same(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lightsae.formats.hub import fetch\n"
        "try: fetch('hf://google/gemma-scope-2b-pt-res/layer_20')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("FormatError 'hf://google/gemma-scope-2b-pt-res/layer_20' cannot be fetched: HF_HUB")
    assert ran.stdout.count("\n") == 1


def test_mistakes_are_named(hub: FakeHub) -> None:
    with_l0s(hub, 71)
    (hub.repository(SCOPE) / "README.md").write_text("a card")
    assert "no repository 'google/nothing' that you may read" in refused("hf://google/nothing/a")
    assert "is no address of the Hub; write hf://OWNER/NAME@REVISION/PATH" in refused("hf://google")
    assert "is no address of the Hub" in refused(f"hf://{SCOPE}/../other")
    assert "has no 'layer_2/width_16k'. Did you mean 'layer_20/width_16k'?" in refused(
        f"hf://{SCOPE}/layer_2/width_16k"
    )
    assert "holds no file of an SAE; it has layer_20." in refused(f"hf://{SCOPE}")
    assert "its layers are 0 to 31" in refused("llama_scope_lxr_8x/l32r_8x")


def test_of_several_saes_one_has_to_be_named(hub: FakeHub) -> None:
    folder = hub.repository("Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50")
    for layer in range(12):
        (folder / f"layer{layer}.sae.pt").write_bytes(b"")
    said = refused("hf://Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50")
    assert "holds 12 SAEs: layer0.sae.pt, layer1.sae.pt" in said
    assert "and 4 more; name one" in said
    assert hub.fetched == []


def test_names_with_patterns_in_them_are_names(hub: FakeHub) -> None:
    folder = hub.repository("somebody/saes")
    gemma_scope.make(folder, "a[1]")
    gemma_scope.make(folder, "a1")
    SavedSAE.open("hf://somebody/saes/a[1]")
    assert hub.fetched == ["a[1]/params.npz"]


def test_the_list_is_of_known_layouts_and_complete() -> None:
    listed = releases()
    assert {one.layout for one in listed.values()} <= set(LAYOUTS)
    for one in listed.values():
        assert one.repository.count("/") == 1
        assert one.widths
        assert one.site
        for scales in one.scales.values():
            assert len(scales) == len(one.layers)
            assert min(scales) > 0
    assert release("gemma-scope-2-270m-pt-res").model == "google/gemma-3-270m"
    assert release("gemma-scope-2-4b-it-transcoders-all").target_site == "mlp_out.{layer}"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("gemma-scope-9b-it-res/layer_9/width_131k/average_l0_67", "layer_9/width_131k/average_l0_67"),
        ("gemma-scope-2-27b-it-att-all/layer_3_width_16k_l0_small", "attn_out_all/layer_3_width_16k_l0_small"),
        (
            "gemma-scope-2-27b-it-att-all/attn_out_all/layer_3_width_16k_l0_small",
            "attn_out_all/layer_3_width_16k_l0_small",
        ),
        ("llama_scope_lxm_32x/l7m_32x", "Llama3_1-8B-Base-L7M-32x"),
        ("llama_scope_r1_distill/l5r_800m_openr1_math", "0-Slimpajama-800M-OpenR1-Math-220k/L5R"),
        ("SAE-Res-Qwen3.5-27B-W80K-L0_100/layer63", "layer63.sae.pt"),
    ],
)
def test_an_id_is_a_path(address: str, path: str) -> None:
    found = find(address)
    assert found is not None
    assert found[1] == path


def test_the_list_says_what_files_leave_open() -> None:
    attention = release("gemma-scope-2-270m-pt-att")
    told = attention.complete(Source(), "attn_out/layer_7_width_1m_l0_big")
    assert (told.model, told.site, told.target_site) == ("google/gemma-3-270m", "attn_z.7", None)
    known = Source(model="mine", site="resid_post.1", sees_bos=True)
    assert release("gemma-scope-2b-pt-res").complete(known, "layer_3/width_16k") == known
    transcoder = release("gemma-scope-2b-pt-transcoders").complete(Source(), "layer_3/width_16k")
    assert (transcoder.target_site, transcoder.sees_bos) == ("mlp_out.3", False)


@pytest.mark.parametrize("name", ["", "lightning_logs/version_0", "runs/sae", "a"])
def test_other_names_are_not_of_the_list(name: str) -> None:
    assert find(name) is None
    assert name == "" or reading.fetch(name) is None


def test_no_network_library_is_imported_with_the_package() -> None:
    code = (
        "import sys, lightsae.formats.hub, lightsae.formats.releases\n"
        "print([name for name in ('huggingface_hub', 'httpx', 'requests') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
