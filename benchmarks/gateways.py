"""The gateways of row A: how each is had, set up and started, in front of one provider.

One rule: each runs as its makers say it is run, with nothing switched on that Headgate does not do as well. What cannot
be had is a `RivalMissingError`. Rivals are kept in a cache folder of the user's, never in the repository or the system.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.process_tree import ProcessTree, running
from benchmarks.rivals.environment import RivalMissingError

PATH = "/v1/chat/completions"
MODEL = "gpt-4o-mini"

PROVIDER_KEY = "sk-mock"
_START_BOUND_S = 120.0
_INSTALL_BOUND_S = 600
_LOOK_EVERY_S = 0.005
_FIRST_CALL = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}]}).encode()


@dataclass(frozen=True)
class Gateway:
    """A gateway that answers; `cold_start_s` is from its start to its first answer."""

    name: str
    port: int
    tree: ProcessTree
    cold_start_s: float
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def headgate(upstream_port: int, folder: Path, core: int | None, *options: str, more: str = "") -> Iterator[Gateway]:
    """Headgate as it is run: a key, six limits that apply to every call, a durable store, the ledger.

    `options` are those of `headgate serve`, `more` is what else the configuration says.
    """
    config = folder / "headgate.toml"
    config.write_text(_HEADGATE.format(upstream_port=upstream_port) + more)
    environ = {"BENCH_PROVIDER_KEY": PROVIDER_KEY}
    command = [sys.executable, "-m", "headgate"]
    made = subprocess.run(
        [*command, "keys", "create", "bench", "--config", config, "--json"],
        env={**os.environ, **environ}, check=True, capture_output=True, text=True, timeout=_START_BOUND_S,
    )  # fmt: skip
    headers = {"authorization": f"Bearer {json.loads(made.stdout)['key']}"}
    port = _free_port()
    serve: list[str | Path] = [*command, "serve", "--config", config, "--listen", f"127.0.0.1:{port}", *options]
    with _answering("Headgate", serve, folder, core, port, headers, environ) as gateway:
        yield gateway


# No limit binds: what they cost is measured, not what they hold back.
_HEADGATE = """
[store]
url = "sqlite:///headgate.sqlite"

[[account]]
name = "main"
provider = "openai"
base_url = "http://127.0.0.1:{upstream_port}/v1"
api_key = "env:BENCH_PROVIDER_KEY"

[[limit]]
scope = "account:main"
requests_per_minute = 1_000_000_000
input_tokens_per_minute = 1_000_000_000_000
output_tokens_per_minute = 1_000_000_000_000
usd_per_day = 100_000_000
slots = 100_000

[[key]]
name = "bench"
usd_per_month = 100_000_000
"""


@contextmanager
def nginx(upstream_port: int, folder: Path, core: int | None) -> Iterator[Gateway]:
    """nginx as a plain reverse proxy with one worker: no keys, no limits, no ledger; the floor for any gateway."""
    binary = _nginx_binary()
    port = _free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, upstream_port=upstream_port))
    command: list[str | Path] = [binary, "-p", folder, "-e", folder / "nginx-error.log", "-c", config]
    with _answering("nginx", command, folder, core, port, {}) as gateway:
        yield gateway


_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 32m;
    client_body_buffer_size 1m;
    keepalive_requests 1000000000;
    upstream provider {{
        server 127.0.0.1:{upstream_port};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def litellm(upstream_port: int, folder: Path, core: int | None) -> Iterator[Gateway]:
    """LiteLLM's proxy with one worker and its master key: no database, no limits, no budget, its lightest set-up."""
    binary = _litellm_binary()
    port = _free_port()
    config = folder / "litellm.yaml"
    config.write_text(_LITELLM.format(model=MODEL, upstream_port=upstream_port, key=PROVIDER_KEY))
    command: list[str | Path] = [
        binary,
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    environ = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network for prices at its start
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    headers = {"authorization": "Bearer sk-bench"}
    with _answering("LiteLLM", command, folder, core, port, headers, environ) as gateway:
        yield gateway


_LITELLM = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{upstream_port}/v1
      api_key: {key}
litellm_settings:
  telemetry: false
  set_verbose: false
general_settings:
  master_key: sk-bench
"""


@contextmanager
def portkey(upstream_port: int, folder: Path, core: int | None) -> Iterator[Gateway]:
    """Portkey's gateway (Node), which keeps nothing: where a call goes is said in its headers."""
    node = shutil.which("node")
    if node is None:
        raise RivalMissingError("Portkey: there is no node on this machine")
    script = _portkey_script()
    port = _free_port()
    headers = {
        "authorization": f"Bearer {PROVIDER_KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream_port}/v1",
    }
    command: list[str | Path] = [node, script, f"--port={port}", "--headless"]
    environ = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    with _answering("Portkey", command, folder, core, port, headers, environ) as gateway:
        yield gateway


# --- from its start to its first answer


@contextmanager
def _answering(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    core: int | None,
    port: int,
    headers: dict[str, str],
    environ: dict[str, str] | None = None,
) -> Iterator[Gateway]:
    begun_s = time.perf_counter()
    with running(command, folder, core=core, environ=environ) as tree:
        last = "it does not listen"
        while (waited_s := time.perf_counter() - begun_s) < _START_BOUND_S:
            if tree.has_ended():
                raise RivalMissingError(f"{name} ended at its start: {tree.said()}")
            try:
                _first_answer(port, headers)
                break
            except urllib.error.HTTPError as error:
                last = f"status {error.code}: {error.read(400).decode(errors='replace')}"
            except OSError:  # not yet
                pass
            time.sleep(_LOOK_EVERY_S)
        else:
            raise RivalMissingError(f"{name} gave no answer in {waited_s:.0f} s: {last}; {tree.said()}")
        yield Gateway(name, port, tree, time.perf_counter() - begun_s, headers)


def _first_answer(port: int, headers: dict[str, str]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}", _FIRST_CALL, {"content-type": "application/json", **headers}
    )
    # Whatever proxy the environment names is not for loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_START_BOUND_S) as answer:
        json.load(answer)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- where rivals are had


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgate-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _nginx_binary() -> Path:
    on_path = shutil.which("nginx")
    unpacked = _cache() / "nginx"
    binary = unpacked / "usr/sbin/nginx"
    if on_path is not None:
        return Path(on_path)
    if not binary.exists():
        if shutil.which("apt-get") is None:
            raise RivalMissingError("nginx is not installed, and this is no Debian where it could be had")
        # Debian's package is unpacked beside the system, not installed: installing would start a server.
        with _fresh(unpacked):
            _install("nginx", ["apt-get", "download", "nginx"], unpacked)
            (package,) = unpacked.glob("nginx_*.deb")
            _install("nginx", ["dpkg-deb", "-x", package, unpacked], unpacked)
    return binary


def _litellm_binary() -> Path:
    environment = _cache() / "litellm"
    binary = environment / "bin/litellm"
    if not binary.exists():
        with _fresh(environment):
            _install("LiteLLM", [sys.executable, "-m", "venv", environment], environment)
            _install("LiteLLM", [environment / "bin/pip", "install", "--quiet", "litellm[proxy]"], environment)
    return binary


def _portkey_script() -> Path:
    folder = _cache() / "portkey"
    script = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RivalMissingError("Portkey: there is no npm on this machine")
        with _fresh(folder):
            _install(
                "Portkey",
                [npm, "install", "--no-fund", "--no-audit", "--prefix", folder, "@portkey-ai/gateway"],
                folder,
            )
    return script


@contextmanager
def _fresh(folder: Path) -> Iterator[None]:
    """Make a folder that stays only if all of the block succeeds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _install(name: str, command: Sequence[str | Path], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_INSTALL_BOUND_S)
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        raise RivalMissingError(f"{name} could not be installed: {said[-200:] or error}") from error
