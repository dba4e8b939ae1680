import torch

from minimodel.affine import part_flows, with_background
from minimodel.dense_motion import DenseMotion


def test_flow_is_a_mixture_of_the_parts():
    torch.manual_seed(0)
    source, driving = torch.rand(2, 3, 2) - 0.5, torch.rand(2, 3, 2) - 0.5
    eye = torch.eye(2).expand(2, 3, 2, 2)
    flows = with_background(part_flows(source, driving, eye, eye, (16, 16)))
    network = DenseMotion(3, base=8, levels=2, maximum=16, head_kernel=3, norm="group")
    coarse = network(torch.rand(2, 3, 16, 16), source, driving, flows)
    assert coarse.flow.shape == (2, 2, 16, 16) and coarse.occlusion.shape == (2, 1, 16, 16)
    assert torch.allclose(coarse.masks.sum(1), torch.ones(2, 16, 16), atol=1e-5)
    assert torch.allclose(coarse.flow, (coarse.masks[:, :, None] * flows).sum(1), atol=1e-6)
    assert (coarse.flow >= flows.amin(1) - 1e-6).all() and (coarse.flow <= flows.amax(1) + 1e-6).all()
