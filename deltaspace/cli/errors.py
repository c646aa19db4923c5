"""Exit codes and one-line error messages of the command line."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence

import typer

from pipeline.runtime.errors import InputError


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line; exit code 0, 2 for bad input (one line on stderr), 1 for a fault of the program.

    `--debug`, anywhere before `--`, shows the traceback above that line.
    """
    arguments = list(arguments)
    debug = "--debug" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(args=arguments or ["--help"], prog_name="deltaspace", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return failed("stopped", 130)
    except InputError as error:
        return failed(str(error), 2, debug)
    except typer.TyperException as error:
        return failed(usage(error), 2, debug)
    except OSError as error:
        return failed(f"{error.filename or 'the system'}: {error.strerror or error}", 2, debug)
    except Exception as error:
        return failed(f"{type(error).__name__}: {error} (a fault of the program: --debug shows where)", 1, debug)


def one_thread() -> None:
    """Limit torch, not imported yet, to one thread: on single images two gain nothing and stall each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def warn(warnings: Iterable[str]) -> None:
    """One line each on stderr."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def failed(message: str, code: int, debug: bool = False) -> int:
    """Print one line on stderr, below the traceback of the current exception with `debug`; returns `code`."""
    if debug:
        import traceback

        traceback.print_exc()
    print(f"deltaspace: {' '.join(message.split())}", file=sys.stderr)
    return code


def usage(error: typer.TyperException) -> str:
    """The mistake in a command line, in one line, with the help to read."""
    possible = getattr(error, "possibilities", None)
    message = (error.message if possible else error.format_message()).rstrip(".")
    hint = f" (did you mean '{possible[0]}'?)" if possible else ""
    context = getattr(error, "ctx", None)
    where = f"`{context.command_path if context else 'deltaspace'} --help`"
    return f"{message} See {where}" if message.endswith("?") else f"{message}{hint}: see {where}"
