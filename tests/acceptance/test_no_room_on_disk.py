"""A gateway whose disk is really full: a small file system of its own is filled up and freed again.

Where this machine lets nobody mount one (user namespaces are off), `tests/stores/test_full_disk.py` has the same with
SQLite's own bound.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import real_headgate
from real_headgate import Process, counted, send

CALL = {"model": "claude-sonnet-4-5", "max_tokens": 60, "messages": [{"role": "user", "content": "hold the gate"}]}
HEADERS = {"content-type": "application/json", "x-provider-output-tokens": "60"}
MOUNTED = ("unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size="$0" none "$1" && shift && exec "$@"')


@pytest.fixture
def disk(tmp_path, monkeypatch, request) -> Path:
    """Give a folder that is a file system of its own, for the processes of this test alone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (*MOUNTED, getattr(request, "param", "4m"), str(folder))
    tried = subprocess.run([*mounted, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.decode().strip()}")
    monkeypatch.setattr(real_headgate, "HEADGATE", (*mounted, sys.executable, "-m", "headgate"))
    return folder


def fill(disk_of_process: Path) -> Path:
    filler = disk_of_process / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def post(gateway: Process) -> real_headgate.Answer:
    return send(gateway.url, "POST", "/v1/messages", json.dumps(CALL).encode(), HEADERS)


def on(disk: Path, config: Path) -> None:
    config.write_text(config.read_text().replace("sqlite:///headgate.sqlite", f"sqlite:///{disk.name}/headgate.sqlite"))


def test_a_gateway_tells_that_its_disk_is_full_and_goes_on_when_there_is_room(bench, disk):
    provider = bench.provider("--first-token-s", "0.01", "--tokens-per-second", "5000")
    bench.configure(provider.url, '[[limit]]\nscope = "account:main"\nrequests_per_minute = 6000')
    on(disk, bench.config)
    gateway = bench.serve()
    assert [post(gateway).status for _ in range(3)] == [200] * 3
    filler = fill(Path(f"/proc/{gateway.popen.pid}/root{disk}"))
    for answer in [post(gateway) for _ in range(3)]:
        assert answer.status >= 500
        assert "Traceback" not in answer.body.decode()
        assert answer.json()["type"] == "error"
    filler.unlink()
    assert [post(gateway).status for _ in range(3)] == [200] * 3
    known = send(gateway.url, "GET", "/api/v1/usage").json()["total"]
    truth = counted(provider)
    names = ("input_tokens", "output_tokens")
    assert [known["requests"], *(known[name] for name in names)] == [6, *(truth[name] for name in names)]
    assert truth["requests_received"] == 6, "what cannot be recorded is not sent"
    gateway.terminate()
    assert gateway.ended() == 0
    assert len(gateway.complained.splitlines()) == 3
    assert all("the disk is full; free some space" in line for line in gateway.complained.splitlines())


@pytest.mark.parametrize("disk", ["8k"], indirect=True)
def test_a_start_on_a_full_disk_is_one_line(bench, disk):
    bench.configure("http://127.0.0.1:1")
    on(disk, bench.config)
    gateway = bench.start("serve", "--listen", "127.0.0.1:0")
    assert gateway.ended() == 1
    assert gateway.complained.count("\n") == 1
    assert "headgate.sqlite" in gateway.complained
    assert "the disk is full; free some space" in gateway.complained
