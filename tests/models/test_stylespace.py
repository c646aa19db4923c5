"""The layout of s: published sizes; layers and levels partition the channels for any widths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.stylespace import LEVELS, StyleLayout

DIMS_1024 = (*[512] * 10, 256, 256, 128, 128, 64, 64, 32)
PUBLISHED = {1024: (17, 6048, 2464), 512: (15, 5952, 2368), 256: (13, 5760, 2176)}  # layers, S, fine

layouts = st.builds(
    lambda dims, a, b: StyleLayout(tuple(dims), (min(a, b), max(a, b))),
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(0, 9),
    st.integers(0, 9),
)


@pytest.mark.parametrize(("layers", "size", "fine"), PUBLISHED.values(), ids=map(str, PUBLISHED))
def test_published_generators_have_their_published_layout(layers: int, size: int, fine: int) -> None:
    layout = StyleLayout(DIMS_1024[:layers])
    assert layout.size == size
    assert layout.levels == {"coarse": slice(0, 1536), "medium": slice(1536, 3584), "fine": slice(3584, size)}
    assert layout.level_sizes == (1536, 2048, fine)


def test_offsets_of_the_1024_pixel_generator_are_those_of_the_table() -> None:
    published = (0, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 4608, 5120, 5376, 5632, 5760, 5888, 5952, 6016)
    assert StyleLayout(DIMS_1024).offsets == published


def test_a_smaller_generators_layout_is_the_beginning_of_a_larger_ones() -> None:
    whole = StyleLayout(DIMS_1024)
    for layers, size, _ in PUBLISHED.values():
        assert StyleLayout(DIMS_1024[:layers]).offsets == whole.offsets[:layers]
        assert whole.layer(layers - 1).stop == size


@given(layouts)
def test_layers_partition_s(layout: StyleLayout) -> None:
    s = torch.arange(layout.size)
    pieces = [s[layout.layer(index)] for index in range(len(layout.dims))]
    assert tuple(map(len, pieces)) == layout.dims
    assert torch.equal(torch.cat(pieces), s)
    assert torch.equal(torch.cat(s.split(layout.dims)), s)


@given(layouts)
def test_levels_are_consecutive_layers_that_partition_s(layout: StyleLayout) -> None:
    s = torch.arange(layout.size)
    assert torch.equal(torch.cat([s[channels] for channels in layout.levels.values()]), s)
    assert tuple(layout.levels) == tuple(layout.level_dims()) == tuple(n for n in LEVELS if n in layout.levels)
    assert sum(layout.level_dims().values(), ()) == layout.dims
    for level, dims in layout.level_dims().items():
        assert layout.levels[level].stop - layout.levels[level].start == sum(dims)


@given(layouts)
def test_a_level_without_layers_is_absent_and_has_size_zero(layout: StyleLayout) -> None:
    assert all(dims for dims in layout.level_dims().values())
    sizes = dict(zip(LEVELS, layout.level_sizes, strict=True))
    assert {level for level, size in sizes.items() if size == 0} == set(LEVELS) - set(layout.levels)
    assert sum(sizes.values()) == layout.size


@pytest.mark.parametrize(
    ("dims", "split", "levels"),
    [
        ((4, 5), (3, 7), {"coarse": slice(0, 9)}),
        ((4, 5, 6, 7), (3, 7), {"coarse": slice(0, 15), "medium": slice(15, 22)}),
        ((4, 5, 6), (0, 2), {"medium": slice(0, 9), "fine": slice(9, 15)}),
        ((4, 5, 6), (1, 1), {"coarse": slice(0, 4), "fine": slice(4, 15)}),
        ((4, 5, 6), (0, 0), {"fine": slice(0, 15)}),
    ],
)
def test_levels_of_small_networks_by_hand(dims, split, levels) -> None:
    assert StyleLayout(dims, split).levels == levels
