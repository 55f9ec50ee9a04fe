"""Records: frozen dataclasses that are made as fast as ones that can be changed.

One rule: to whoever has one it is the frozen, slotted dataclass that it is declared as; only how it is made differs.
It is for what every call makes, with five fields or more: below, it gains nothing.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

T = TypeVar("T")

_UNSET = object()


def made_quickly(cls: type[T]) -> type[T]:
    """Give a frozen dataclass with slots an `__init__` that takes a third of the time.

    dataclasses set each field of a frozen one by a call of `object.__setattr__`. Here the object is of a twin class
    with the same slots, which is not frozen, until its fields are set; nobody else sees it before. (Named tuples are
    as fast, but equal to any tuple, and to leave classes unfrozen is what type checkers cannot forgive for all.)
    """
    # `__post_init__` and other bases' slots would need more than is written here.
    assert cls.__bases__ == (object,), cls
    assert not hasattr(cls, "__post_init__"), cls
    every: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]  # a dataclass, as is said above
    twin = type(cls.__name__, (), {"__slots__": tuple(each.name for each in every)})
    known: dict[str, Any] = {"_set": object.__setattr__, "_twin": twin, "_unset": _UNSET}
    head, body = ["self"], []
    for each in every:
        name = each.name
        value = name
        if each.default is not MISSING:
            known[f"_default_{name}"] = each.default
            head.append(f"{name}=_default_{name}")
        elif each.default_factory is not MISSING:
            known[f"_make_{name}"] = each.default_factory
            head.append(f"{name}=_unset")
            value = f"_make_{name}() if {name} is _unset else {name}"
        else:
            head.append(name)
        body.append(f"    self.{name} = {value}")
    lines = [
        f"def __init__({', '.join(head)}):",
        "    _own = self.__class__",
        "    _set(self, '__class__', _twin)",
        *body,
        "    self.__class__ = _own",
    ]
    exec("\n".join(lines), known)  # noqa: S102 - the names are a class's own fields, as in `dataclasses`
    made: Callable[..., None] = known["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__annotations__ = dict(cls.__init__.__annotations__)
    cls.__init__ = made  # type: ignore[method-assign]
    return cls
