"""Pickles read as data: a machine that knows a fixed list of names, runs none of what they name, and imports nothing.

`pickletools` decodes the instructions; here they only put plain values together. A name gives an inert `Name`; calling
it runs the function of ours that stands for it in the caller's table, and a name that is not in the table is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from pipeline.runtime.errors import InputError

MOST_STEPS = 4_000_000  # instructions; a published file has some ten thousand
Calls = Mapping[str, Callable[..., Any]]
PLAIN = (str, int, float, bytes, bool, type(None))  # what may be a key: hashing it takes neither code nor depth
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "numpy.core": "numpy._core"}
VALUES = frozenset(  # instructions whose argument is the value
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, and nothing of what it does."""

    path: str


def shown(text: object, most: int = 60) -> str:
    """What a file says, fit for an error's one line: no control characters, not long."""
    return str(text)[:most].encode("unicode_escape").decode()


class Thing:
    """An object as data: the class it claims, what it was made of, and the state it was given."""

    def __init__(self, path: str, *arguments: Any) -> None:
        self.path, self.arguments = path, arguments
        self.state: Any = None


def load(stream: IO[bytes], calls: Calls, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The next pickle of `stream`. calls: name -> our function that takes its arguments; persistent: id -> value.

    Unknown names raise InputError; a broken pickle raises what comes (ValueError, IndexError, TypeError, KeyError).
    """
    return _Machine(calls, persistent).run(stream)


class _Machine:
    def __init__(self, calls: Calls, persistent: Callable[[Any], Any] | None) -> None:
        self.calls, self.persistent = calls, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MOST_STEPS:
                raise ValueError(f"more than {MOST_STEPS} instructions")
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
            raise ValueError("a call of what is no name")
        if named.path == "copyreg._reconstructor":  # an object of the oldest protocols: class, base, base's value
            return self.call(arguments[0], ())
        return self.calls[named.path](*arguments)

    def put(self, target: Any, items: Sequence[Any]) -> dict[Any, Any]:
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("entries of what is no mapping")
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
            raise ValueError("items of what is no list")
        self.stack[-1].extend(items)

    def build(self) -> None:
        target, state = self.take(2)
        if isinstance(target, Thing):
            target.state = state
        elif not isinstance(target, dict):  # attributes of a mapping say nothing about what it holds
            raise ValueError("a state of what is no object")
        self.stack.append(target)

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def resolve(self, identity: Any) -> Any:
        if self.persistent is None:
            raise ValueError("a reference to what lies elsewhere")
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
