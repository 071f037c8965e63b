import http.client
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import pytest
import torch

from helpers.fake_dictionary import fake_manifest, fake_tables
from lightsae.analysis.dashboard import write_dashboard
from lightsae.analysis.dashboard.live import LiveEncoder
from lightsae.analysis.dashboard.server import _THREADS, MAX_CHARACTERS, DashboardServer
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.cli.commands.serve import run_serve
from lightsae.errors import ConfigError, FormatError, SiteError
from lightsae.formats.native import load_sae, save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import SiteRef, TopK, Widths

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DashboardServer]:
    folder = tmp_path / "dictionary"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("the page")
    (folder / ".hidden").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    os.symlink(tmp_path / "outside.txt", folder / "link.txt")
    with DashboardServer(folder, port=0, encode=lambda text: {"tokens": [text]}, model="m") as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: DashboardServer,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_files_of_the_folder_are_served_and_nothing_else(server: DashboardServer) -> None:
    status, body, headers = ask(server, "/")
    assert (status, body) == (200, b"the page")
    assert headers["X-Content-Type-Options"] == "nosniff"
    for path in (
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "//outside.txt",
        "/link.txt",
        "/.hidden",
        "/assets/",
        "/x%00y",
    ):
        status, body, _ = ask(server, path)
        assert status == 404, path
        assert b"secret" not in body


@pytest.mark.parametrize(
    "host", ["evil.example:{port}", "evil.example", "127.0.0.1:1", "localhost.evil:{port}", "", "[::1"]
)
def test_other_names_are_refused(server: DashboardServer, host: str) -> None:
    assert ask(server, "/", headers={"Host": host.format(port=server.server_port)})[0] == 403


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_names_of_this_machine_are_served(server: DashboardServer, host: str) -> None:
    assert ask(server, "/", headers={"Host": host.format(port=server.server_port)})[0] == 200


def test_a_text_is_encoded(server: DashboardServer) -> None:
    status, body, _ = ask(server, "/api/encode", "POST", json.dumps({"text": "hé"}).encode(), JSON)
    assert (status, json.loads(body)) == (200, {"tokens": ["hé"]})
    assert json.loads(ask(server, "/api/status")[1])["live"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"text": "x"}', {"Content-Type": "text/plain"}, 415),
        (b'{"text": "x"}', JSON | {"Origin": "http://evil.example"}, 403),
        (b'{"text": "x"}', JSON | {"Origin": "null"}, 403),
        (b'{"text": "x"}', JSON | {"Sec-Fetch-Site": "cross-site"}, 403),
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b'{"text": 1}', JSON, 400),
        (b'{"text": "\\ud800"}', JSON, 400),
        (b"[" * 5000, JSON, 400),
        (b'{"text": "\xff"}', JSON, 400),
        (json.dumps({"text": "x" * (MAX_CHARACTERS + 1)}).encode(), JSON, 413),
        (b'"' + b"x" * (7 * MAX_CHARACTERS), JSON, 413),
    ],
)
def test_what_is_no_text_from_here_is_refused(
    server: DashboardServer, body: bytes, headers: dict[str, str], status: int
) -> None:
    try:
        found, answer, _ = ask(server, "/api/encode", "POST", body, headers)
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # closed before all was sent
        return
    assert found == status
    assert json.loads(answer)["error"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of\nmemory"), ValueError(), RecursionError(), KeyError("x")])
def test_an_encoder_that_fails_is_answered(
    server: DashboardServer, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_text: str) -> dict[str, object]:
        raise error

    works, server.encode = server.encode, fail
    status, body, headers = ask(server, "/api/encode", "POST", b'{"text": "x"}', JSON)
    assert (status, headers["Content-Type"]) == (500, "application/json")
    assert type(error).__name__ in json.loads(body)["error"]
    server.encode = works
    assert ask(server, "/api/encode", "POST", b'{"text": "x"}', JSON)[0] == 200
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_json_has_no_word_for_are_an_error(server: DashboardServer, value: float) -> None:
    server.encode = lambda _text: {"tokens": [value]}
    status, body, _ = ask(server, "/api/encode", "POST", b'{"text": "x"}', JSON)
    assert status == 500
    assert json.loads(body)["error"]


@pytest.mark.parametrize("path", ["/", "/assets/", "/api/status", "/nothing", "/.hidden"])
def test_the_policy_is_a_header_of_every_answer(server: DashboardServer, path: str) -> None:
    header = ask(server, path)[2]["Content-Security-Policy"]
    page = resources.files("lightsae.analysis.dashboard").joinpath("assets", "index.html").read_text(encoding="utf-8")
    meta = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert meta is not None
    # What only a header can say, and what only a page on the disk needs.
    assert header == meta[1].replace(" file:", "") + "; frame-ancestors 'none'"


def test_threads_are_capped_and_nobody_is_turned_away(server: DashboardServer) -> None:
    most, now, lock, everybody = [0], [0], threading.Lock(), threading.Event()

    def encode(_text: str) -> dict[str, object]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == _THREADS:
                everybody.set()
        assert everybody.wait(60)
        with lock:
            now[0] -= 1
        return {}

    server.encode = encode
    with ThreadPoolExecutor(3 * _THREADS) as pool:
        asked = [pool.submit(ask, server, "/api/encode", "POST", b'{"text": "x"}', JSON) for _ in range(3 * _THREADS)]
        assert [one.result()[0] for one in asked] == [200] * len(asked)
    assert most == [_THREADS]


def test_somebody_who_hangs_up_is_no_news(server: DashboardServer, capfd: pytest.CaptureFixture[str]) -> None:
    (server.folder / "large.js").write_bytes(bytes(30_000_000))
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            host = f"127.0.0.1:{server.server_port}"
            connection.sendall(f"GET /large.js HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            connection.recv(1000)
    server.shutdown()
    server.server_close()
    assert capfd.readouterr().err == ""


def test_without_a_model_there_is_no_live_page(server: DashboardServer) -> None:
    server.encode = None
    assert not json.loads(ask(server, "/api/status")[1])["live"]
    assert ask(server, "/api/encode", "POST", b'{"text": "x"}', JSON)[0] == 404


@pytest.fixture
def sae_folder(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sae = TopK(Widths.autoencoder(SiteRef(str(make_model()), "resid_post.1"), 12), d_sae=24, k=3)
    save_sae(sae, tmp_path / "sae", {"context_size": 32})
    return tmp_path / "sae"


def test_features_are_those_that_the_sae_gives(sae_folder: Path) -> None:
    live = LiveEncoder.load(load_sae(sae_folder), {"context_size": 32})
    told = live.encode("héllo <b>")
    lm = next(iter(live.lms.values()))
    ids = [lm.bos_token_id, *lm.tokenizer.encode("héllo <b>", add_special_tokens=False)]
    assert [token["id"] for token in told["tokens"]] == ids
    assert [token["counted"] for token in told["tokens"]][:2] == [False, True]
    x = lm.capture(torch.tensor([ids]), ["resid_post.1"])["resid_post.1"][0].float()
    dense = live.sae.encode(x).detach()
    for token, latents in zip(told["tokens"], dense, strict=True):
        fired = latents.nonzero()[:, 0].tolist()
        assert dict(token["features"]) == pytest.approx({i: float(latents[i]) for i in fired})
        values = [value for _, value in token["features"]]
        assert values == sorted(values, reverse=True)
    assert not told["cut"]
    # A text that was copied with its BOS gets no second one.
    assert live.encode(f"{lm.tokenizer.bos_token}héllo <b>") == told


def test_long_texts_are_cut_and_empty_ones_are_empty(sae_folder: Path) -> None:
    live = LiveEncoder.load(load_sae(sae_folder), {"context_size": 32})
    told = live.encode("x" * 100)
    assert told["cut"]
    assert len(told["tokens"]) == 32
    assert live.encode("") == {"tokens": [], "cut": False}


def test_an_sae_of_activation_files_is_refused() -> None:
    with pytest.raises(SiteError, match="leave --sae out"):
        LiveEncoder.load(TopK(Widths.of(4), d_sae=8, k=2), {})


@pytest.fixture
def dictionary(sae_folder: Path, tmp_path: Path) -> Path:
    tables, manifest = fake_tables(24), fake_manifest(24) | {"sae": SavedSAE.open(sae_folder).entry}
    write_dictionary(tmp_path / "d", tables, manifest, extra=lambda staged: write_dashboard(staged, tables, manifest))
    return tmp_path / "d"


def test_ctrl_c_ends_it_cleanly(
    dictionary: Path, sae_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(server: DashboardServer) -> None:
        assert server.encode is not None
        assert server.encode("a")["tokens"]
        raise KeyboardInterrupt

    monkeypatch.setattr(DashboardServer, "serve_forever", stop)
    assert run_serve([str(dictionary), "--sae", str(sae_folder), "--port", "0"]) == 0
    said = capsys.readouterr()
    assert "http://127.0.0.1:" in said.out
    assert "warning" not in said.err


def test_listening_to_everybody_is_warned_of(
    dictionary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DashboardServer, "serve_forever", lambda server: None)
    assert run_serve([str(dictionary), "--port", "0", "--host", "0.0.0.0"]) == 0
    assert "warning: --host 0.0.0.0" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(dictionary: Path, tmp_path: Path, server: DashboardServer) -> None:
    other = TopK(load_sae(tmp_path / "sae").widths, d_sae=24, k=3)
    save_sae(other, tmp_path / "other")
    wrong = {
        (str(dictionary), "--port", str(server.server_port)): (ConfigError, "another program uses"),
        (str(dictionary), "--port", "70000"): (ConfigError, "0..65535"),
        (str(dictionary), "--port", "x"): (ConfigError, "port"),
        (str(dictionary), "--prot", "1"): (ConfigError, "Did you mean '--port'"),
        (): (ConfigError, "lightsae serve FOLDER"),
        (str(dictionary), "--sae", str(tmp_path / "other")): (FormatError, "is not the SAE"),
        (str(tmp_path / "none"),): (FormatError, "does not exist"),
    }
    for args, (error, words) in wrong.items():
        with pytest.raises(error, match=words) as told:
            run_serve(list(args))
        assert "\n" not in str(told.value)


def test_a_dictionary_without_a_dashboard_is_refused(sae_folder: Path, tmp_path: Path) -> None:
    write_dictionary(tmp_path / "bare", fake_tables(24), fake_manifest(24) | {"sae": SavedSAE.open(sae_folder).entry})
    with pytest.raises(FormatError, match="no dashboard"):
        run_serve([str(tmp_path / "bare")])
