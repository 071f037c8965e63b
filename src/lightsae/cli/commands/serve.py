"""`lightsae serve`: a feature dictionary's dashboard, with a page that encodes what is typed."""

import errno
import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from lightsae.analysis.dashboard.live import LiveEncoder
from lightsae.analysis.dashboard.server import DashboardServer
from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.cli.settings.command import command
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.saved_sae import SavedSAE

_EXAMPLES = (
    "lightsae serve dictionary",
    "lightsae serve dictionary --sae lightning_logs/version_0/sae --port 0",
)


@dataclass(frozen=True)
class LiveSettings:
    """The live page's language model, where it is not that of the training.

    Attributes:
        model: Language model: Hub name, folder, or `builtin`.
        model_revision: Revision of a Hub model.
        dtype: Dtype of the language model: `auto`, `float32`, `bfloat16`, `float16`.
        device: Where model and SAE go: cpu, cuda, mps.
        quantization: Round the language model's weights: `8bit`, `4bit`, or `none`.
        device_map: Spread the language model over devices; as data.device_map of `lightsae fit`.
        trust_remote_code: Run code that a Hub model brings along.
    """

    model: str | None = None
    model_revision: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    trust_remote_code: bool = False
    quantization: Literal["none", "8bit", "4bit"] | None = None
    device_map: str | dict[str, int | str] | None = None


@command("FOLDER [OPTIONS]", _EXAMPLES, positional=True)
def run_serve(
    folder: str, live: LiveSettings, sae: str | None = None, port: int = 8080, host: str = "127.0.0.1"
) -> None:
    """Serve the dashboard of a feature dictionary.

    With --sae there is one more page, on which a typed text is encoded by the language model and the SAE. The other
    pages need no server: open FOLDER/index.html.

    Ctrl-C ends it.

    Args:
        folder: A feature dictionary, as `lightsae interpret` writes it.
        live: Of the live page.
        sae: The SAE, for the live page; no live page without it.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on; by default for this machine alone.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}; it must lie in 0..65535.")
    dictionary = FeatureDictionary.open(folder, verify=False)
    if not (dictionary.folder / "index.html").is_file():
        raise FormatError(f"{folder!r} has no dashboard (index.html); build the dictionary with its dashboard.")
    _serve(dictionary.folder, host, port, _encoder(dictionary, sae, live) if sae is not None else None)


def _encoder(dictionary: FeatureDictionary, sae: str, live: LiveSettings) -> LiveEncoder:
    saved = dictionary.named(SavedSAE.of(sae, live.device))
    dictionary.check_belongs_to(saved)
    return LiveEncoder.load(
        saved.sae,
        saved.provenance.values,
        live.device,
        live.model,
        revision=live.model_revision,
        dtype=live.dtype,
        trust_remote_code=live.trust_remote_code,
        quantization=live.quantization,
        device_map=live.device_map,
    )


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
