"""Names of an earlier version: the same objects, with a warning that names the new place and points at the import."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lightsae
from lightsae.moved import MOVED

README = {
    "artefact": ("FeatureDictionary", "Release", "export_case_study", "export_neuronpedia", "write_dictionary"),
    "monitor": ("JsonLines", "Prometheus", "calibrate", "monitor"),
    "registry": ("load_channel", "promote", "publish", "rollback", "verify"),
}


@pytest.fixture(autouse=True)
def _not_imported_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(tuple(MOVED))]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_is_the_new_one(old: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert found.__spec__.name == MOVED[old]
    assert all(hasattr(found, name) for name in README[old.rpartition(".")[2]])


def test_the_warning_points_at_the_import_and_nothing_heavy_comes_with_it() -> None:
    program = "import lightsae, sys; assert 'torch' not in sys.modules\nfrom lightsae.analysis.monitor import JsonLines"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "<string>:2: DeprecationWarning: lightsae.analysis.monitor is now lightsae.production.monitor" in done.stderr
    assert done.stderr.count("DeprecationWarning") == 1


@pytest.mark.filterwarnings("ignore:lightsae.analysis.monitor:DeprecationWarning")
def test_submodules_are_read_once() -> None:
    from lightsae.analysis.monitor.sinks import Sink

    from lightsae.production.monitor.sinks import Sink as New

    assert Sink is New


@pytest.mark.filterwarnings("ignore:lightsae.analysis.monitor:DeprecationWarning")
@pytest.mark.parametrize("name", ["lightsae.analysis.monitor.no", "lightsae.analysis.monitors"])
def test_what_is_nowhere_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_other_imports_are_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace package has a path of its own kind."""
    (tmp_path / "space_for_a_test").mkdir()
    (tmp_path / "space_for_a_test" / "inner.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.import_module("space_for_a_test.inner").x == 1


def test_steer_keeps_its_signature_and_is_made_once() -> None:
    from lightsae.analysis.steering import steer

    assert inspect.signature(lightsae.steer) == inspect.signature(steer)
    assert lightsae.steer.__doc__ == steer.__doc__
    assert lightsae.steer is lightsae.steer
