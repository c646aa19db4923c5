"""The style-conditioned U-Net: conditioning of its blocks, equality with DiffAE's network."""

from collections import Counter

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.models import unet as module
from pipeline.models.unet import Denoiser, boundaries_of, level_of

SIZES = (5, 7, 3)  # coarse, medium, fine channels of s
SMALL = {"resolution": 64, "style_sizes": SIZES, "channels": 8, "mult": (1, 1, 2, 2), "patch": 2}
SMALL |= {"time_dim": 12, "style_dim": 10}


def small(**changes) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(**{**SMALL, **changes}).eval()


def awake(network: Denoiser) -> Denoiser:
    """The network with no zero weights left, as after some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return network


def inputs(batch: int = 3, resolution: int = 64):
    torch.manual_seed(2)
    x, s = torch.randn(batch, 3, resolution, resolution), torch.randn(batch, sum(SIZES))
    return x, torch.randint(0, 1000, (batch,)), s


def blocks(network: torch.nn.Module) -> dict[str, ResnetBlock2D]:
    return {name: block for name, block in network.named_modules() if isinstance(block, ResnetBlock2D)}


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_output_has_the_shape_of_the_image_with_any_patch(patch):
    x, t, s = inputs(2)
    assert awake(small(patch=patch))(x, t, s).shape == x.shape


def test_a_new_network_predicts_zero_and_ignores_the_style():
    x, t, s = inputs()
    assert not small()(x, t, s).any()
    half = small()
    torch.nn.init.normal_(half.conv_out.weight)
    assert torch.equal(half(x, t, s), half(x, t, -s))


def test_a_new_flow_network_gives_the_best_linear_prediction():
    torch.manual_seed(0)
    network, t = small(objective="flow"), torch.tensor([0.0, 250.0, 1000.0])
    picture, noise = torch.randn(2, 3, 4000, dtype=torch.float64)
    picture = picture / 2
    with torch.no_grad():
        said = network(torch.ones(3, 3, 64, 64), t, torch.zeros(3, sum(SIZES)))
    for row, part in enumerate(t.double() / 1000):
        mixture, wanted = (1 - part) * picture[row] + part * noise[row], noise[row] - picture[row]
        best = (mixture @ wanted) / (mixture @ mixture)
        torch.testing.assert_close(said[row].double(), best.expand_as(said[row]), atol=0.1, rtol=0)
    with pytest.raises(ValueError, match="objective is 'x0': eps, v, flow are known"):
        small(objective="x0")


def test_with_zero_style_heads_it_equals_the_unconditional_unet_of_diffusers():
    network = awake(small())
    for block in blocks(network).values():
        module.zeroed(block.time_emb_proj.style)
    plain = UNet2DModel(**{key: value for key, value in network.config.items() if not key.startswith("_")}).eval()
    mine = network.state_dict()
    extra = {key for key in mine if ".style." in key or key.startswith("class_embedding.")}
    assert set(plain.state_dict()) == set(mine) - extra
    plain.load_state_dict({key: value for key, value in mine.items() if key not in extra})
    x, t, s = inputs()
    expected = torch.nn.functional.pixel_shuffle(plain(torch.nn.functional.pixel_unshuffle(x, 2), t).sample, 2)
    torch.testing.assert_close(network(x, t, s), expected, rtol=1e-5, atol=1e-5)


def test_a_block_computes_time_scale_and_shift_then_style_scale():
    network = awake(small())
    name = "up_blocks.1.resnets.0"
    block = blocks(network)[name]
    x, t, s = inputs()
    seen = {}
    block.norm2.register_forward_hook(lambda _, __, out: seen.update(normed=out))
    block.dropout.register_forward_hook(lambda _, arguments, __: seen.update(active=arguments[0]))
    network(x, t, s)
    silu = torch.nn.functional.silu
    angles = t[:, None] * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(4) / 4)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    embedding = network.time_embedding
    time = embedding.linear_2(silu(embedding.linear_1(waves)))
    level = network.block_levels[name]
    own = s.split(SIZES, dim=1)[("coarse", "medium", "fine").index(level)]
    z = network.class_embedding.levels[level](own)
    head = block.time_emb_proj
    t_s, t_b = (silu(time) @ head.weight.T + head.bias).chunk(2, dim=1)
    z_s = silu(z) @ head.style.weight.T + head.style.bias
    t_s, t_b, z_s = (value[:, :, None, None] for value in (t_s, t_b, z_s))
    expected = silu((1 + z_s) * ((1 + t_s) * seen["normed"] + t_b))
    torch.testing.assert_close(seen["active"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_levels_follow_the_image_resolution_with_any_patch(patch):
    levels = small(patch=patch).block_levels
    rows = ["fine", "medium", "medium", "coarse"]  # image 64, 32, 16, 8
    for i, level in enumerate(rows):
        assert levels[f"down_blocks.{i}.resnets.0"] == level
        assert levels[f"up_blocks.{3 - i}.resnets.1"] == level
    for i, level in enumerate(rows[1:]):
        assert levels[f"down_blocks.{i}.downsamplers.0"] == level  # the resolution it produces
        assert levels[f"up_blocks.{2 - i}.upsamplers.0"] == rows[i]
    assert levels["mid_block.resnets.0"] == levels["mid_block.resnets.1"] == "coarse"
    assert [level_of(r) for r in (4, 8, 16, 32, 64, 1024)] == ["coarse"] * 2 + ["medium"] * 2 + ["fine"] * 2


def test_boundaries_lie_below_the_resolution_at_which_the_next_level_of_the_generator_begins():
    first = [4, 8, 8, 16, 16, 32, 32, 64]  # of StyleGAN2's convolutions
    for split in ((3, 7), (1, 5), (2, 4), (0, 3)):
        assert boundaries_of(split) == (first[split[0]] // 2, first[split[1]] // 2)
    assert boundaries_of((3, 7)) == (8, 32)
    assert level_of(4, boundaries_of((0, 3))) == "medium"


def test_each_level_of_s_reaches_its_own_blocks_and_no_others():
    network = awake(small())
    x, t, s = inputs()
    heads = {name: block.time_emb_proj for name, block in blocks(network).items()}

    def outputs(code):
        seen = {}
        hooks = [
            head.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
            for name, head in heads.items()
        ]
        network(x, t, code)
        for hook in hooks:
            hook.remove()
        return seen

    before = outputs(s)
    for level, part in zip(("coarse", "medium", "fine"), (slice(0, 5), slice(5, 12), slice(12, 15)), strict=True):
        moved = s.clone()
        moved[:, part] += 1
        after = outputs(moved)
        changed = {name for name in heads if not torch.equal(before[name], after[name])}
        assert changed == {name for name, at in network.block_levels.items() if at == level}


def test_gradients_reach_all_three_levels_after_the_output_layer_changed():
    network = awake(small())
    for block in blocks(network).values():
        module.zeroed(block.time_emb_proj.style)  # as at the start
    x, t, s = inputs()
    network(x, t, s).square().mean().backward()
    for block in blocks(network).values():
        assert block.time_emb_proj.style.weight.grad.abs().max() > 0
    awake(network)(x, t, s).square().mean().backward()
    for level in ("coarse", "medium", "fine"):
        for parameter in network.class_embedding.levels[level].parameters():
            assert parameter.grad.abs().max() > 0


def test_outputs_are_independent_of_the_batch():
    network = awake(small())
    x, t, s = inputs(8)
    together = network(x, t, s)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], s[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("resolution", "mult", "resblocks", "channels", "millions", "levels"),
    [
        (256, (1, 1, 2, 2, 4, 4), 42, 12_928, 131.7, {"fine": 20, "medium": 14, "coarse": 8}),
        (128, (1, 1, 2, 3, 4), 35, 10_240, 98.6, {"fine": 13, "medium": 14, "coarse": 8}),
    ],
)
def test_published_configurations_have_the_sizes_of_diffaes_networks(
    resolution, mult, resblocks, channels, millions, levels
):
    with torch.device("meta"):
        network = Denoiser(resolution, (1536, 2048, 2464), 128, mult, blocks=2, time_dim=512, style_dim=512)
    every = blocks(network)
    assert len(every) == resblocks
    assert sum(block.out_channels for block in every.values()) == channels
    assert Counter(network.block_levels.values()) == levels
    style = sum(p.numel() for key, p in network.named_parameters() if ".style." in key or "class_emb" in key)
    heads, embeddings = channels * 513, 6048 * 512 + 3 * (512 * 512 + 2 * 512)
    assert style == heads + embeddings
    assert (sum(p.numel() for p in network.parameters()) - style) / 1e6 == pytest.approx(millions, abs=0.05)
    attention = [name for name, part in network.named_modules() if hasattr(part, "to_out")]
    places = Counter(".".join(name.split(".")[:-2]) for name in attention)
    at_16 = resolution.bit_length() - 5
    up = len(mult) - 1 - at_16
    assert places == {f"down_blocks.{at_16}": 2, f"up_blocks.{up}": 3, "mid_block": 1}


def test_a_level_without_channels_is_left_out():
    network = awake(Denoiser(16, (5, 7, 0), channels=8, mult=(1, 2), time_dim=12, style_dim=10))
    x, t, _ = inputs(2, 16)
    assert network(x, t, torch.randn(2, 12)).shape == x.shape
    assert set(network.block_levels.values()) == {"coarse", "medium"}
    assert set(network.class_embedding.levels) == {"coarse", "medium"}


def test_a_style_level_that_no_block_reads_is_refused():
    with pytest.raises(ValueError, match="no block reads the fine style"):
        Denoiser(32, SIZES, channels=8, mult=(1, 2))
    with pytest.raises(ValueError, match="no block reads the medium style"):
        Denoiser(64, SIZES, channels=8, mult=(1,))
    with pytest.raises(ValueError, match="cannot be halved"):
        Denoiser(48, SIZES, channels=8, mult=(1, 1, 1, 1), patch=4)


def test_a_style_of_wrong_length_is_refused():
    x, t, s = inputs()
    with pytest.raises(RuntimeError):
        small()(x, t, s[:, :-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_runs_in_bfloat16_and_float64(dtype):
    network = awake(small())
    x, t, s = inputs()
    expected = network(x, t, s)
    out = network.to(dtype)(x.to(dtype), t, s.to(dtype))
    assert out.dtype == dtype
    distance = (out.float() - expected).norm() / expected.norm()
    assert distance < (0.05 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_and_cpu_agree():
    network = awake(small())
    x, t, s = inputs()
    expected = network(x, t, s)
    found = network.cuda()(x.cuda(), t.cuda(), s.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_keys_are_those_of_diffusers_plus_the_style():
    keys = set(small().state_dict())
    assert {
        "conv_in.weight",
        "time_embedding.linear_1.weight",
        "class_embedding.levels.coarse.0.weight",
        "class_embedding.levels.fine.2.bias",
        "down_blocks.0.resnets.0.time_emb_proj.weight",
        "down_blocks.0.resnets.0.time_emb_proj.style.weight",
        "down_blocks.0.downsamplers.0.conv1.weight",
        "down_blocks.2.attentions.0.to_out.0.weight",
        "mid_block.attentions.0.to_q.weight",
        "up_blocks.3.resnets.1.conv_shortcut.weight",
    } <= keys
    assert all(key.split(".")[0] in TOP for key in keys)


TOP = {"conv_in", "conv_norm_out", "conv_out", "time_embedding", "class_embedding"}
TOP |= {"down_blocks", "mid_block", "up_blocks"}
