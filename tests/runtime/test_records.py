"""A record that is made quickly is the frozen dataclass that it is declared as."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from headgate.runtime.records import made_quickly


@dataclass(frozen=True, slots=True)
class Plain:
    name: str
    amount: int
    models: str | None = None
    marks: list[str] = field(default_factory=list)
    of: float = field(default=1.0, repr=False, compare=False)


@made_quickly
@dataclass(frozen=True, slots=True)
class Quick:
    name: str
    amount: int
    models: str | None = None
    marks: list[str] = field(default_factory=list)
    of: float = field(default=1.0, repr=False, compare=False)


def test_it_reads_compares_and_copies_as_the_plain_one() -> None:
    plain, quick = Plain("a", 2, marks=["x"]), Quick("a", 2, marks=["x"])
    assert repr(quick) == repr(plain).replace("Plain", "Quick")
    assert type(quick) is Quick
    assert quick == Quick("a", 2, None, ["x"], 7.0)
    assert quick != Quick("a", 3, marks=["x"])
    assert replace(quick, amount=5) == Quick("a", 5, marks=["x"])
    assert copy.copy(quick) == pickle.loads(pickle.dumps(quick)) == quick


def test_it_cannot_be_changed() -> None:
    quick = Quick("a", 2)
    with pytest.raises(FrozenInstanceError):
        quick.amount = 3  # type: ignore[misc]  # that is what is tried
    with pytest.raises(FrozenInstanceError):
        del quick.amount  # type: ignore[misc]


def test_each_has_defaults_of_its_own() -> None:
    one, other = Quick("a", 2), Quick("a", 2)
    one.marks.append("x")
    assert other.marks == []
    assert Quick("a", 2, marks=[]).of == 1.0


def test_what_is_missing_or_unknown_is_told_as_by_any_function() -> None:
    with pytest.raises(TypeError, match="amount"):
        Quick("a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unknown"):
        Quick("a", 2, unknown=3)  # type: ignore[call-arg]


def test_a_class_with_bases_or_more_to_do_is_turned_away() -> None:
    with pytest.raises(AssertionError):

        @made_quickly
        @dataclass(frozen=True, slots=True)
        class Child(Plain):
            more: int = 0
