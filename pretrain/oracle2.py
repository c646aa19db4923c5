"""Trains the second oracle, of another architecture, as the first: it checks what the first has read of edits."""

from __future__ import annotations

from functools import partial

from pretrain import oracle

train = partial(oracle.train, name="oracle2")
promote = partial(oracle.promote, name="oracle2")
steps = oracle.steps
