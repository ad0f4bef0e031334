"""The Triton kernel of determinants' scores against the map in float64: on a GPU, elsewhere interpreted on the CPU."""

import pytest
import torch

from shared.fields import jacobian_determinant

pytest.importorskip("triton", reason="no Triton")

from shared.kernels.jacobian_triton import jacobian_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(9, 7), (1, 5), (30, 40), (5, 6, 7), (4, 1, 3), (1, 1, 1), (9, 10, 11)]


def expected(field: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    found = jacobian_determinant(field[None].double())[0, 0]
    found = found.flatten() if mask is None else found[mask != 0]
    logs = found.clamp(1e-9, 1e9).log()
    spread = ((logs - logs.mean()) ** 2).sum()
    return torch.stack([torch.tensor(float(len(found))).to(logs), (found <= 0).sum().to(logs), logs.mean(), spread])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_scores_are_those_of_the_map_in_double_precision(size, dtype):
    field = 0.7 * torch.randn(len(size), *size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)
    field = field.to(DEVICE, dtype)
    none = torch.empty(0, dtype=torch.uint8, device=DEVICE)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(jacobian_scores(field, none), expected(field), rtol=tolerance, atol=tolerance)
    mask = (torch.rand(size, generator=torch.Generator().manual_seed(2)) > 0.4).to(torch.uint8)
    mask.view(-1)[0] = 1
    mask = mask.to(DEVICE)
    torch.testing.assert_close(jacobian_scores(field, mask), expected(field, mask), rtol=tolerance, atol=tolerance)


def test_no_voxel_and_no_number():
    field = torch.zeros(3, 4, 4, 4, device=DEVICE)
    assert jacobian_scores(field, torch.zeros(4, 4, 4, dtype=torch.uint8, device=DEVICE)).tolist() == [0, 0, 0, 0]
    field[1, 2, 2, 2] = float("nan")
    assert jacobian_scores(field, torch.empty(0, dtype=torch.uint8, device=DEVICE))[3].isnan()
