import torch

from minimodel.affine import combine, part_flows, with_background
from minimodel.warping import identity_grid


def random_parts(k=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    points = [torch.rand(2, k, 2, generator=generator, dtype=dtype) - 0.5 for _ in range(2)]
    affines = [
        torch.eye(2, dtype=dtype) + 0.2 * torch.randn(2, k, 2, 2, generator=generator, dtype=dtype) for _ in "sd"
    ]
    return *points, *affines


def test_equation_1_in_a_loop():
    source, driving, source_affine, driving_affine = random_parts()
    flows = part_flows(source, driving, source_affine, driving_affine, (4, 5))
    grid = identity_grid(4, 5, dtype=torch.float64)
    for b in range(2):
        for k in range(3):
            for y in range(4):
                for x in range(5):
                    z = grid[:, y, x]
                    jacobian = source_affine[b, k] @ torch.linalg.inv(driving_affine[b, k])
                    target = source[b, k] + jacobian @ (z - driving[b, k])
                    assert torch.allclose(flows[b, k, :, y, x], target - z, atol=1e-12)


def test_a_part_that_moves_rigidly_moves_all_its_pixels_alike():
    points = torch.zeros(1, 1, 2)
    eye = torch.eye(2).view(1, 1, 2, 2)
    flows = part_flows(points + 0.25, points, eye, eye, (3, 3))
    assert torch.allclose(flows, torch.full((1, 1, 2, 3, 3), 0.25))


def test_points_carry_gradients_and_gradcheck_holds():
    parts = [tensor[:1, :2].clone().requires_grad_() for tensor in random_parts()]
    assert torch.autograd.gradcheck(lambda *p: part_flows(*p, (3, 2)), parts)


def test_masks_choose_and_mix():
    flows = with_background(torch.ones(1, 2, 2, 3, 3) * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1))
    assert flows.shape == (1, 3, 2, 3, 3)
    masks = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1).expand(1, 3, 3, 3)
    assert torch.allclose(combine(flows, masks), torch.full((1, 2, 3, 3), 0.75))
    assert torch.equal(flows[:, 0], torch.zeros(1, 2, 3, 3))
