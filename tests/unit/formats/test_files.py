"""Atomic writes: after any failure, and after a kill at any moment, the old contents or the new ones are there."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightsae.errors import ConfigError
from lightsae.formats import temporary
from lightsae.formats.files import (
    explain_os_errors,
    find_folder,
    replace_folder_atomically,
    scratch_folder,
    write_atomically,
    write_json,
)
from lightsae.formats.tensor_files import save_tensors


def fill(folder: Path, text: str) -> None:
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    (folder / "below" / "b.txt").write_text(text)


def fill_half(folder: Path, failure: type[BaseException]) -> None:
    with replace_folder_atomically(folder) as staged:
        (staged / "a.txt").write_text("half")
        raise failure


def contents(folder: Path) -> list[str]:
    return [(folder / "a.txt").read_text(), (folder / "below" / "b.txt").read_text()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_parents_and_nothing_beside_it(tmp_path):
    with write_atomically(tmp_path / "deep" / "x.txt") as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert names(tmp_path / "deep") == [temporary.name]
    assert (tmp_path / "deep" / "x.txt").read_text() == "new"
    assert names(tmp_path / "deep") == ["x.txt"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file(tmp_path, failure):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def write_half():
        with write_atomically(target) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert names(tmp_path) == ["x.txt"]
    assert target.read_text() == "old"


def test_a_full_disk_keeps_the_old_file_and_names_the_path_as_written(tmp_path, monkeypatch, full_disk):
    monkeypatch.chdir(tmp_path)
    Path("x.bin").write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"Cannot write 'x\.bin': the file would be larger") as caught:
        with write_atomically("x.bin") as temporary:
            temporary.write_bytes(bytes(100_000))
    assert str(tmp_path) not in str(caught.value)
    assert names(tmp_path) == ["x.bin"]
    assert Path("x.bin").read_bytes() == b"old"


@pytest.mark.parametrize("existing", [None, "empty", "old"])
def test_a_folder_takes_the_place_of_what_was_there(tmp_path, existing):
    target = tmp_path / "sae"
    if existing == "old":
        fill(target, "old")
        (target / "left.txt").touch()
    elif existing == "empty":
        target.mkdir()
    with replace_folder_atomically(target) as staged:
        fill(staged, "new")
    assert contents(target) == ["new", "new"]
    assert names(target) == ["a.txt", "below"]
    assert names(tmp_path) == ["sae"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_folder(tmp_path, failure):
    fill(tmp_path / "sae", "old")
    with pytest.raises(failure):
        fill_half(tmp_path / "sae", failure)
    assert contents(tmp_path / "sae") == ["old", "old"]
    assert names(tmp_path) == ["sae"]


KILLED = """
import os, sys
from pathlib import Path
from lightsae.formats.files import replace_folder_atomically
moment, target = int(sys.argv[1]), sys.argv[2]
calls, rename = 0, os.rename
def dying(source, destination):
    global calls
    calls += 1
    if calls == moment:
        os._exit(9)
    rename(source, destination)
os.rename = dying
with replace_folder_atomically(target) as staged:
    (staged / "below").mkdir()
    (staged / "a.txt").write_text("new")
    if moment == 0:
        os._exit(9)
    (staged / "below" / "b.txt").write_text("new")
"""


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_kill_leaves_a_readable_folder_and_the_next_write_clears_up(tmp_path, moment):
    target = tmp_path / "sae"
    fill(target, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(moment), str(target)])
    assert killed.returncode == 9
    found = find_folder(target)
    assert found is not None
    assert contents(found) == ["old", "old"]
    with replace_folder_atomically(target) as staged:
        fill(staged, "newest")
    assert find_folder(target) == target
    assert contents(target) == ["newest", "newest"]
    assert names(tmp_path) == ["sae"]


def test_a_failure_after_a_kill_does_not_lose_what_was_set_aside(tmp_path):
    target = tmp_path / "sae"
    fill(tmp_path / ".previous-sae", "old")
    with pytest.raises(RuntimeError):
        fill_half(target, RuntimeError)
    assert contents(target) == ["old", "old"]


def test_a_folder_through_a_link_keeps_the_link(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    with replace_folder_atomically(tmp_path / "link") as staged:
        fill(staged, "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == ["new", "new"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.ENOTDIR, "a file, not a folder"),
    ],
)
def test_failures_to_write_are_explained(number, words):
    with pytest.raises(ConfigError, match=f"Cannot write 'runs/x': .*{words}"), explain_os_errors("runs/x"):
        raise OSError(number, os.strerror(number))


def test_a_hidden_cause_is_found(tmp_path):
    chained = RuntimeError("unexpected pos 576 vs 534")
    chained.__context__ = OSError(errno.ENOSPC, "full")
    with pytest.raises(ConfigError, match="no space"), explain_os_errors("x"):
        raise chained
    with pytest.raises(ConfigError, match="no space"), explain_os_errors("x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [ValueError("other"), FileNotFoundError(errno.ENOENT, "gone")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, explain_os_errors("x"):
        raise error
    assert caught.value is error


def test_a_file_in_the_way_of_a_folder_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a file, not a folder"), write_atomically(tmp_path / "file" / "x.txt"):
        pass


def test_a_file_has_the_mode_that_the_user_asks_for(tmp_path):
    (tmp_path / "plain.txt").touch()
    with write_atomically(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "x.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_others_may_read_tensors_as_any_file(tmp_path):
    (tmp_path / "plain.txt").touch()
    with write_atomically(tmp_path / "x.safetensors") as temporary:
        save_tensors({"a": torch.arange(6.0).view(2, 3).T}, temporary)
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_two_writers_of_a_file_end_with_one_of_both_whole(tmp_path):
    with write_atomically(tmp_path / "x.txt") as first, write_atomically(tmp_path / "x.txt") as second:
        assert first != second
        assert (first.suffix, second.suffix) == (".txt", ".txt")
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "x.txt").read_text() == "first", "the last one wins"
    assert names(tmp_path) == ["x.txt"]


def test_two_writers_of_a_folder_end_with_one_of_both_whole(tmp_path):
    fill(tmp_path / "sae", "old")
    with replace_folder_atomically(tmp_path / "sae") as first, replace_folder_atomically(tmp_path / "sae") as second:
        assert first != second
        fill(first, "first")
        fill(second, "second")
    assert contents(tmp_path / "sae") == ["first", "first"]
    assert names(tmp_path) == ["sae"]


WRITERS = """
import sys
from pathlib import Path
from lightsae.formats.files import replace_folder_atomically, write_atomically
target, text = Path(sys.argv[1]), sys.argv[2]
for _ in range(40):
    with write_atomically(target / "x.txt") as path, path.open("w") as file:
        for _ in range(50):
            file.write(text * 2000)
    with replace_folder_atomically(target / "sae") as folder:
        for name in "abc":
            (folder / name).write_text(text)
print("done")
"""


def test_processes_that_write_the_same_never_mix(tmp_path):
    started = [
        subprocess.Popen([sys.executable, "-c", WRITERS, str(tmp_path), text], stdout=subprocess.PIPE, text=True)
        for text in "12"
    ]
    seen = set()
    while any(process.poll() is None for process in started):
        with contextlib.suppress(FileNotFoundError):
            text = (tmp_path / "x.txt").read_text()
            seen.add((len(text), *sorted(set(text))))
    assert [process.communicate()[0] for process in started] == ["done\n", "done\n"]
    assert seen <= {(100_000, "1"), (100_000, "2")}
    assert len({path.read_text() for path in (tmp_path / "sae").iterdir()}) == 1
    assert names(tmp_path) == ["sae", "x.txt"]


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").write_text("kept")
    name = temporary.unused_name(tmp_path / "x.txt")
    name.symlink_to("elsewhere")
    monkeypatch.setattr("lightsae.formats.files.unused_name", lambda target: name)
    with pytest.raises(ConfigError, match="Cannot write"), write_atomically(tmp_path / "x.txt") as path:
        path.write_text("new")
    assert (tmp_path / "elsewhere").read_text() == "kept"
    assert not (tmp_path / "x.txt").exists()


def test_what_a_killed_process_left_in_a_scratch_folder_goes_with_the_next(tmp_path):
    write = """
import os, sys
from pathlib import Path
from lightsae.formats.files import scratch_folder, write_atomically
folder = Path(sys.argv[1])
with scratch_folder(folder) as scratch, write_atomically(folder / "x.txt", within=scratch) as path:
    path.with_name("what a library writes beside").touch()
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", write, str(tmp_path)]).returncode == 9
    (left,) = names(tmp_path)
    with scratch_folder(tmp_path) as scratch, scratch_folder(tmp_path) as beside:
        assert left not in names(tmp_path)
        with write_atomically(tmp_path / "x.txt", within=scratch) as path:
            path.with_name("what a library writes beside").touch()
        assert set(names(tmp_path)) == {scratch.name, beside.name, "x.txt"}, "of one that is at work, all stays"
    assert names(tmp_path) == ["x.txt"]


def test_what_killed_writers_left_is_cleared_away_and_what_others_write_is_not(tmp_path):
    write = """
import os, sys
from lightsae.formats.files import write_atomically
with write_atomically(sys.argv[1]):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", write, str(tmp_path / "x.txt")]).returncode == 9
    (left,) = names(tmp_path)
    assert left.startswith(".partial-")
    others = {".partial-y.txt", f".partial-00000000-{left.split('-')[2]}-ab-x.txt"}
    for name in (*others, ".partial-x.txt"):
        (tmp_path / name).touch()
    with write_atomically(tmp_path / "x.txt") as first, write_atomically(tmp_path / "x.txt") as second:
        assert set(names(tmp_path)) == {first.name, second.name, *others}, "another file's, and another machine's, stay"


def test_json_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "\u00e9"})
    assert path.read_bytes() == b'{\n  "name": "\xc3\xa9"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"figure": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_json(path, {"path": os.fsdecode(b"\xff")})
    assert path.read_bytes() == b'{\n  "name": "\xc3\xa9"\n}\n'
    assert names(tmp_path) == ["a.json"]


def test_json_takes_figures_that_were_not_measured_and_paths_that_are_no_text(tmp_path):
    write_json(tmp_path / "a.json", [float("nan"), os.fsdecode(b"\xff")], finite=False, ascii_only=True)
    figure, path = json.loads((tmp_path / "a.json").read_text())
    assert figure != figure
    assert os.fsencode(path) == b"\xff"
