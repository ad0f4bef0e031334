from __future__ import annotations

from itertools import product

import pytest
import torch

from shared.fields import compose, exponentiate, identity, jacobian_determinant
from shared.networks import SymmetricCascade
from shared.networks.paths import FullPath, MidpointPath, VelocityPath

PATHS = ("full", "midpoint", "velocity")


def small(spatial_dims: int = 3, excited: float = 0.3, **options) -> SymmetricCascade:
    """Return a cascade of three scales whose heads answer with random increments."""
    torch.manual_seed(0)
    settings = {"levels": 3, "widths": (4, 6, 8), "hidden": (4, 6, 8), "steps_per_level": (1, 2, 2), **options}
    network = SymmetricCascade(spatial_dims, **settings)
    for module in network.corrections:
        torch.nn.init.normal_(module.head.conv.weight, std=excited)
    return network.eval()


def pair(*size: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("spatial_dims", "size"), [(3, (12, 16, 8)), (3, (9, 13, 7)), (2, (20, 11))])
@pytest.mark.parametrize("path", PATHS)
def test_exchanging_the_images_exchanges_the_fields(path, spatial_dims, size):
    network, image = small(spatial_dims, path=path), pair(*size, batch=2)
    there, back = network.fields(image), network.fields(image.flip(1))
    assert there["ddf"].abs().max() > 0.3
    torch.testing.assert_close(back["inv_ddf"], there["ddf"], atol=1e-5, rtol=0)
    torch.testing.assert_close(back["ddf"], there["inv_ddf"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("path", "backbone"), product(PATHS, ("unet", "mobile")))
def test_untrained_it_is_the_identity(path, backbone):
    network = SymmetricCascade(levels=3, widths=4, hidden=4, steps_per_level=1, path=path, backbone=backbone)
    fields = network.fields(pair(8, 8, 8))
    assert not fields["ddf"].any()
    assert not fields["inv_ddf"].any()


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 2), (17, 4, 9)])
def test_any_size_goes_in_and_comes_out(size):
    assert small()(pair(*size)).shape == (1, 3, *size)


def test_forward_is_the_forward_field():
    network, image = small(), pair(8, 9, 10)
    assert torch.equal(network(image), network.fields(image)["ddf"])


def test_the_velocity_is_half_of_the_deformation():
    image = pair(16, 16, 16)
    dvf = small(path="velocity", output="dvf", integration_steps=7)(image)
    half = exponentiate(dvf, 7)
    ddf = small(path="velocity", integration_steps=7)(image)
    torch.testing.assert_close(compose(half, half), ddf, atol=0.02, rtol=0)


@pytest.mark.parametrize(("path", "voxels"), [("midpoint", 0.1), ("velocity", 0.1)])
def test_halves_that_meet_midway_undo_each_other(path, voxels):
    fields = small(path=path, excited=0.15).fields(pair(24, 24, 24))
    residual = compose(fields["ddf"], fields["inv_ddf"])[..., 4:-4, 4:-4, 4:-4]
    assert fields["ddf"].abs().max() > 0.5
    assert residual.norm(dim=1).mean() < voxels


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (24, 21)), (3, (24, 20, 22))])
def test_consistency_steps_bring_the_two_fields_closer_to_each_others_inverses(spatial_dims, size):
    left = []
    for steps in (0, 1, 2):
        with torch.no_grad():
            fields = small(spatial_dims, excited=0.2, consistency_steps=steps).fields(pair(*size))
        residuals = [
            compose(*ends) for ends in ((fields["ddf"], fields["inv_ddf"]), (fields["inv_ddf"], fields["ddf"]))
        ]
        left.append(float(torch.cat(residuals).norm(dim=1).mean()))
    assert fields["ddf"].abs().max() > 0.3
    # What is left is of second order, but for the borders and for interpolation.
    assert left[1] < 0.25 * left[0]
    assert left[2] < left[1]


def test_a_consistency_step_changes_neither_an_inverse_pair_nor_the_identity():
    angle = torch.tensor(0.2)
    position = identity((32, 32)) - 15.5
    turns = []
    for c, s in ((torch.cos(angle), torch.sin(angle)), (torch.cos(angle), -torch.sin(angle))):
        turns.append(torch.stack([c * position[0] - s * position[1], s * position[0] + c * position[1]]) - position)
    state = torch.stack(turns)
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    torch.testing.assert_close(FullPath(4).agree(state, 3)[inside], state[inside], atol=1e-4, rtol=0)
    assert not FullPath(4).agree(torch.zeros(2, 3, 4, 4, 4), 3).any()


@pytest.mark.parametrize("bound", [0.1, 0.4])
def test_increments_stay_within_their_bound(bound):
    increments = small(excited=10.0, increment_bound=bound).fields(pair(8, 8, 8))["increments"]
    assert len(increments) == 5
    assert max(float(w.detach().abs().max()) for w in increments) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(("path", "spatial_dims"), product(PATHS, (2, 3)))
@pytest.mark.parametrize("bound", [4.0, 0.0])
def test_with_repair_no_voxel_folds_whatever_the_weights(path, spatial_dims, bound):
    size = (17, 20, 13)[:spatial_dims]
    options = {"path": path, "increment_bound": bound, "excited": 20.0}
    folded = small(spatial_dims, **options).fields(pair(*size))
    assert jacobian_determinant(folded["ddf"]).min() < 0, "the test needs weights that fold"
    repaired = small(spatial_dims, repair_folds=True, **options).fields(pair(*size))
    for name in ("ddf", "inv_ddf"):
        assert repaired[name].abs().max() > 0
        assert jacobian_determinant(repaired[name]).min() > 0


def test_repair_leaves_a_field_without_folds_alone():
    image = pair(16, 16, 16)
    plain, repaired = (small(excited=0.02, repair_folds=repair)(image) for repair in (False, True))
    assert torch.equal(plain, repaired)


def test_repair_of_one_pair_leaves_its_neighbour_in_the_batch_alone():
    calm, wild = torch.full((1, 2, 16, 16), 0.5), pair(16, 16)
    network = small(2, excited=20.0, increment_bound=4.0, repair_folds=True)
    both = network(torch.cat([calm, wild]))
    torch.testing.assert_close(both[:1], network(calm), atol=1e-4, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_small_increments_need_few_squarings(path):
    image = pair(16, 16, 16)
    few, many = (small(path=path, excited=0.1, integration_steps=n)(image) for n in (4, 9))
    assert (few - many).abs().max() < 0.01
    assert (few - many).abs().mean() < 1e-3


def test_increments_add_up_to_a_translation():
    path, state = FullPath(steps=4), torch.zeros(2, 3, 8, 8, 8)
    shift = torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1, 1).expand(2, 3, 8, 8, 8)
    for _ in range(5):
        state = path.advance(state, shift)
    torch.testing.assert_close(state, 5 * shift)


@pytest.mark.parametrize("path", [FullPath(7), MidpointPath(7), VelocityPath(7)], ids=lambda p: type(p).__name__)
def test_increments_add_up_to_a_rotation(path):
    size, angle, steps = (33, 33), 0.05, 4
    position = identity(size) - 16
    turn = angle * torch.stack([-position[1], position[0]])[None]
    state = path.start(torch.zeros(2, 1, *size))
    for _ in range(steps):
        state = path.advance(state, torch.cat([turn, -turn]))
    total = torch.tensor(angle * steps * (1 if isinstance(path, FullPath) else 2))
    c, s = torch.cos(total), torch.sin(total)
    expected = torch.stack([c * position[0] - s * position[1], s * position[0] + c * position[1]]) - position
    inside = (slice(None), slice(8, -8), slice(8, -8))
    torch.testing.assert_close(path.ends(state)[0][0][inside], expected[inside], atol=0.03, rtol=0)


@pytest.mark.parametrize("options", [{}, {"path": "midpoint"}, {"path": "velocity", "output": "dvf"}, {"finest": 1}])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_torchscript_gives_the_same_field(options, spatial_dims, tmp_path):
    network, image = small(spatial_dims, **options), pair(*(12, 10, 8)[:spatial_dims])
    torch.jit.script(network).save(tmp_path / "model.ts")
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-5, rtol=0)


def test_torchscript_with_every_other_option():
    options = ({"recurrent": False}, {"symmetric": False}, {"update": "add"}, {"repair_folds": True})
    for option in (*options, {"backbone": "mobile", "checkpointing": True}):
        network = small(**option)
        torch.testing.assert_close(torch.jit.script(network)(pair(8, 8, 8)), network(pair(8, 8, 8)), atol=1e-5, rtol=0)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        network = small(checkpointing=checkpointing).train()
        network(pair(8, 8, 8)).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("options", [{}, {"path": "midpoint"}, {"path": "velocity"}, {"backbone": "mobile"}])
def test_every_weight_learns(options):
    network = small(**options)
    fields = network.fields(pair(8, 8, 8))
    (fields["ddf"].square().mean() + fields["inv_ddf"].square().mean()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("path", PATHS)
def test_half_precision_of_the_convolutions_hardly_moves_the_field(path):
    network, image = small(path=path, excited=0.2), pair(16, 16, 16)
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(image)
    assert rounded.dtype == torch.float32
    assert exact.abs().max() > 0.5
    assert (exact - rounded).abs().max() < 0.05


def test_the_light_backbone_is_light():
    count = {b: sum(p.numel() for p in small(backbone=b).pyramid.parameters()) for b in ("unet", "mobile")}
    assert count["mobile"] < 0.5 * count["unet"]


def test_scales_are_told_by_name():
    fields = small(finest=1).fields(pair(16, 16, 16))
    assert [entry["scale"] for entry in fields["scales"]] == [2, 1]
    assert [tuple(entry["ddf"].shape) for entry in fields["scales"]] == [(1, 3, 4, 4, 4), (1, 3, 8, 8, 8)]


def test_forward_only_has_no_reverse_field():
    fields = small(symmetric=False).fields(pair(8, 8, 8))
    assert "inv_ddf" not in fields
    assert fields["ddf"].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "half"}, "found path 'half', expected one of"),
        ({"output": "dvf"}, "found output 'dvf' with path 'full'"),
        ({"update": "multiply"}, "found update 'multiply'"),
        ({"path": "midpoint", "symmetric": False}, "found path 'midpoint', expected 'full'"),
        ({"steps_per_level": (1, 2)}, r"found steps_per_level \(1, 2\), expected a number or 3 of them"),
        ({"spatial_dims": 4}, "found spatial_dims 4"),
        ({"backbone": "resnet"}, "found backbone 'resnet'"),
        ({"repair_folds": "false"}, "repair_folds: found 'false', expected True or False"),
        ({"finest": 3}, "found finest 3, expected a scale from 0 to 2"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
