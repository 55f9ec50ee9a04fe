"""A process is alive while that process runs, and not when another one has its number."""

import os
import subprocess
import sys

import psutil
import pytest

from headgate.adapters import owners
from headgate.adapters.owners import owner_is_alive, owner_name


def name_of_another_process() -> tuple[subprocess.Popen[str], str]:
    code = "from headgate.adapters.owners import owner_name; print(owner_name(), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_two_managers_of_one_process_differ_and_both_live() -> None:
    one, other = owner_name(), owner_name()
    assert one != other
    assert owner_is_alive(one)
    assert owner_is_alive(other)
    assert "/" not in one  # holds are named `hold/<owner>/<attempt>`


def test_another_process_is_alive_until_it_ends_even_if_nobody_has_noticed() -> None:
    process, name = name_of_another_process()
    with process:
        assert owner_is_alive(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
        assert not owner_is_alive(name)
    assert not owner_is_alive(name)


def test_a_number_that_was_given_to_another_process_is_not_the_owner() -> None:
    host, pid, start_ms, manager = owner_name().split(":")
    assert not owner_is_alive(f"{host}:{pid}:{int(start_ms) - 1000}:{manager}")
    assert owner_is_alive(f"{host}:{pid}:{int(start_ms) + 10}:{manager}")


@pytest.mark.parametrize("name", ["another-host:1:2:3", "", "no-owner", "a:b:c:d"])
def test_of_other_hosts_and_strange_names_nothing_is_known_so_they_live(name: str) -> None:
    assert owner_is_alive(name)


def test_a_clock_that_is_set_does_not_kill_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    name = owner_name()
    created_s, booted_s = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created_s(self) + 7200)
    monkeypatch.setattr(psutil, "boot_time", lambda: booted_s() + 7200)
    assert owner_is_alive(name)


def test_a_host_name_of_any_kind_makes_a_name_that_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners.socket, "gethostname", lambda: "odd:name/with ünicode")
    name = owner_name()
    assert "/" not in name
    assert name.count(":") == 3
    assert owner_is_alive(name)
