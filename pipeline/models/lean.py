"""Import open_clip without what editing never uses of it, more than two thirds of its import time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

DYNAMO = "torch._dynamo"
UTILS = f"{DYNAMO}.utils"
UNREAD = ("models", "datasets")  # of torchvision, which imports them with anything else of it


@contextmanager
def lean_imports(models: bool = False) -> Iterator[None]:
    """Inside, `import open_clip` leaves out timm, torch's compiler, and models and datasets of torchvision.

    All can be imported as usual afterwards. models: torchvision's come with it.

    timm: open_clip does without it when it is not installed, and is told so; only its `timm_model_name` towers need
    it. The compiler (torch._dynamo, with sympy): torchvision's roi_align imports one function of it, which here becomes
    a function that imports the compiler when it is called. Any other use of it inside imports the real one.
    """
    placed: dict[str, Any] = {"timm": None}
    if DYNAMO not in sys.modules:
        placed |= {DYNAMO: _Deferred(DYNAMO), UTILS: _Deferred(UTILS)}
    if not models and "torchvision" not in sys.modules:
        placed |= {f"torchvision.{name}": ModuleType(f"torchvision.{name}") for name in UNREAD}
    placed = {name: module for name, module in placed.items() if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name, module in placed.items():
            if name in sys.modules and sys.modules[name] is module:
                del sys.modules[name]
            package, _, own = name.rpartition(".")
            if own in UNREAD and getattr(sys.modules.get(package), own, None) is module:
                delattr(sys.modules[package], own)


class _Deferred(ModuleType):
    """Stands for a module of the compiler until something of it is really used."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "is_compile_supported":
            return lambda *arguments: getattr(_real(self.__name__), name)(*arguments)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    for placed in (DYNAMO, UTILS):
        if isinstance(sys.modules.get(placed), _Deferred):
            del sys.modules[placed]
    return importlib.import_module(name)
