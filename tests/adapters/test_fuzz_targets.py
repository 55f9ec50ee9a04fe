"""The fuzz targets, for a few seconds each time: `make fuzz` goes on for longer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.seeds import SEEDS, spoiled
from fuzz.targets import TARGETS

INPUTS = 400
SLOW = {"config": 20, "headers": 150}
"""How many, where one takes milliseconds."""


def test_every_target_has_seeds():
    assert SEEDS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_meant_and_what_is_spoiled_keeps_the_laws(name):
    for seed in SEEDS[name]:
        TARGETS[name](seed)
    for number in range(SLOW.get(name, INPUTS)):
        TARGETS[name](spoiled(name, number))


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW])
@given(data=st.data())
def test_what_hypothesis_thinks_of_keeps_the_laws(name, data):
    seed = data.draw(st.sampled_from([b"", *SEEDS[name]]))
    at = data.draw(st.integers(0, len(seed)))
    TARGETS[name](seed[:at] + data.draw(st.binary(max_size=200)) + seed[data.draw(st.integers(at, len(seed))) :])


def test_a_law_that_does_not_hold_is_noticed(monkeypatch):
    monkeypatch.setattr("fuzz.targets.ask_for_usage", lambda body: body.replace(b"false", b"true "))
    with pytest.raises((AssertionError, KeyError)):
        _try_bodies()


def _try_bodies():
    for number in range(50):
        TARGETS["body"](spoiled("body", number))
