"""A full disk that root feels as well: for a while, no file of this process may grow beyond a limit."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_after(limit: int) -> Iterator[None]:
    """Writing beyond `limit` bytes of any file raises OSError, as ENOSPC would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
