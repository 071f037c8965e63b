"""`lightsae serve`: a feature dictionary's dashboard, with a page that encodes what is typed."""

import errno
import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightsae.analysis.dashboard.live import LiveEncoder
from lightsae.analysis.dashboard.server import DashboardServer
from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.cli.settings.command import CommandParser
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.native import describe_sae, load_sae

_DESCRIPTION = (
    "Serve the dashboard of a feature dictionary. With --sae there is one more page, on which a typed text is encoded "
    "by the language model and the SAE. The other pages need no server: open FOLDER/index.html.\n\n"
    "Ctrl-C ends it."
)
_EXAMPLES = (
    "lightsae serve dictionary",
    "lightsae serve dictionary --sae lightning_logs/version_0/sae --port 0",
)


def run_serve(args: Sequence[str]) -> int:
    """Serve a folder until Ctrl-C."""
    parser = CommandParser("serve", "FOLDER [OPTIONS]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("folder", type=str, help="A feature dictionary, as `lightsae interpret` writes it.")
    parser.add_argument("--sae", type=str | None, help="The SAE's export, for the live page; no live page without it.")
    parser.add_argument("--port", type=int, default=8080, help="Port to listen on; 0 takes a free one.")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to listen on; by default for this machine alone."
    )
    parser.add_argument("--device", type=str, default="cpu", help="Where model and SAE go: cpu, cuda, mps.")
    given = parser.parse_args(list(args))
    if not 0 <= given.port <= 65535:
        raise ConfigError(f"--port is {given.port}; it must lie in 0..65535.")
    dictionary = FeatureDictionary.open(given.folder, verify=False)
    if not (dictionary.folder / "index.html").is_file():
        raise FormatError(f"{given.folder!r} has no dashboard (index.html); build the dictionary with its dashboard.")
    live = _encoder(dictionary, given.sae, given.device) if given.sae is not None else None
    _serve(dictionary.folder, given.host, given.port, live)
    return 0


def _encoder(dictionary: FeatureDictionary, folder: str, device: str) -> LiveEncoder:
    dictionary.check_belongs_to(folder)
    return LiveEncoder.load(load_sae(folder, device), describe_sae(folder)["provenance"], device)


def _serve(folder: Path, host: str, port: int, live: LiveEncoder | None) -> None:
    try:
        server = DashboardServer(folder, host, port, live.encode if live else None, live.name if live else "")
    except OSError as error:
        raise ConfigError(_why_not(error, host, port)) from None
    with server:
        shown = f"[{host}]" if ":" in host else host
        if not _is_loopback(host):
            print(
                f"lightsae: warning: --host {host} lets everybody who reaches this machine read the dictionary"
                f"{' and run the model' if live else ''}.",
                file=sys.stderr,
            )
        address = f"http://{shown}:{server.server_port}/"
        Console().print(f"{address}  (Ctrl-C ends it)", soft_wrap=True, markup=False, highlight=False)
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            # The way in which a server is meant to end.
            print("\nlightsae: stopped.", file=sys.stderr)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port is {port}, which another program uses; write another one, or 0 for a free one."
    if error.errno == errno.EACCES:
        return f"--port is {port}, which needs special rights; write one above 1023, or 0 for a free one."
    return f"--host is {host!r}, where this machine cannot listen ({error.strerror}); write 127.0.0.1 for itself alone."
