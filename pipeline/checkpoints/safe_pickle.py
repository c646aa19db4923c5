"""Pickles read as data: nothing that a pickle names is imported or called.

`pickletools` decodes the instructions, which here only assemble plain values. A global becomes an inert `Name`; calling
it runs the caller's function of that name, and a name outside the caller's table is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from pipeline.runtime.errors import InputError

MAX_INSTRUCTIONS = 4_000_000  # instructions; a published file has some ten thousand
Calls = Mapping[str, Callable[..., Any]]
PLAIN = (str, int, float, bytes, bool, type(None))  # types of keys: hashing them runs no code
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "numpy.core": "numpy._core"}
VALUES = frozenset(  # instructions whose argument is the value
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)


@dataclass(frozen=True)
class Name:
    """The dotted name of a class or function in a pickle."""

    path: str


def shown(text: object, most: int = 60) -> str:
    """Text of a file, fit for an error's one line: short, without control characters."""
    return str(text)[:most].encode("unicode_escape").decode()


class Thing:
    """An object as data: name of its class, arguments of its constructor, and state."""

    def __init__(self, path: str, *arguments: Any) -> None:
        self.path, self.arguments = path, arguments
        self.state: Any = None


def load(stream: IO[bytes], calls: Calls, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The next pickle of `stream`.

    calls: name -> function that is called in its place; persistent: persistent id -> value
    Raises InputError for a name that is not in `calls`; ValueError, IndexError, TypeError or KeyError for a broken
    pickle.
    """
    return _Machine(calls, persistent).run(stream)


class _Machine:
    """Pickle's stack machine."""

    def __init__(self, calls: Calls, persistent: Callable[[Any], Any] | None) -> None:
        self.calls, self.persistent = calls, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
            if code.name == "STOP":
                return self.stack.pop()
            if code.name in VALUES:
                self.stack.append(argument)
            elif (step := _STEPS.get(code.name)) is not None:
                step(self, argument)
            else:
                raise ValueError(f"the instruction {code.name}")
        raise ValueError("no end")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise ValueError("a value is missing")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def name(self, module: Any, name: Any) -> Name:
        for old, new in RENAMED.items():
            if module == old or str(module).startswith(f"{old}."):
                module = new + str(module)[len(old) :]
        path = f"{module}.{name}"
        if path not in self.calls:
            raise InputError(f"it names '{shown(path, 80)}', which is not on the list of what is read")
        return Name(path)

    def call(self, named: Any, arguments: Any) -> Any:
        if not isinstance(named, Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of a value that is no name")
        if named.path == "copyreg._reconstructor":  # an object of the oldest protocols: class, base, base's value
            return self.call(arguments[0], ())
        return self.calls[named.path](*arguments)

    def put(self, target: Any, items: Sequence[Any]) -> dict[Any, Any]:
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("entries of no mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, PLAIN):
                raise ValueError(f"a key of type {type(key).__name__}")
            target[key] = value
        return target

    def entries(self) -> None:
        items = self.since_mark()
        self.put(self.stack[-1], items)

    def extend(self, items: Sequence[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items of no list")
        self.stack[-1].extend(items)

    def build(self) -> None:
        target, state = self.take(2)
        if isinstance(target, Thing):
            target.state = state
        elif not isinstance(target, dict):  # attributes of a mapping are not part of its entries
            raise ValueError("a state of no object")
        self.stack.append(target)

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def resolve(self, identity: Any) -> Any:
        if self.persistent is None:
            raise ValueError("a persistent id in a pickle without storages")
        return self.persistent(identity)


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.take(1),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_SET": lambda m, _: m.stack.append([]),  # sets become lists: nothing is hashed
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "FROZENSET": lambda m, _: m.stack.append(m.since_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.stack.append(m.take(1)),
    "TUPLE2": lambda m, _: m.stack.append(m.take(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.take(3)),
    "DICT": lambda m, _: m.stack.append(m.put({}, m.since_mark())),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.put(m.stack[-3], m.take(2)),
    "SETITEMS": lambda m, _: m.entries(),
    "GLOBAL": lambda m, both: m.stack.append(m.name(*both.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.stack.append(m.name(*m.take(2))),
    "REDUCE": lambda m, _: m.stack.append(m.call(*m.take(2))),
    "NEWOBJ": lambda m, _: m.stack.append(m.call(*m.take(2))),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.stack.append(m.resolve(m.stack.pop())),
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, key: m.stack.append(m.memo[key]),
    "BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.stack.append(m.memo[key]),
}
