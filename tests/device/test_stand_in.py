"""The stand-in for a GPU: it computes what the processor does, and refuses what a GPU refuses."""

import pytest
import torch


def test_what_a_gpu_refuses():
    """Two devices in one operation, plain numpy and the processor's generator are refused."""
    one = torch.ones(3, device="standin:0")
    other = torch.ones(3, device="standin:1")
    plain = torch.ones(3)
    for refused in (
        lambda: one + plain,
        lambda: one + other,
        lambda: plain.add_(one),
        lambda: torch.cat([one, plain]),
        lambda: one[:, None].index_select(0, torch.tensor([0])),
        lambda: torch.nn.functional.embedding(torch.tensor([0]), one[:, None]),
        lambda: torch.nn.functional.linear(one, plain[None]),
    ):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            refused()
    with pytest.raises(TypeError, match="to numpy"):
        one.numpy()
    with pytest.raises(RuntimeError, match="'standin' device type for generator but found 'cpu'"):
        torch.randn(3, device="standin", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.empty(0, device="standin:2")
    assert (one + torch.tensor(1.0)).tolist() == one.mul(2).numpy(force=True).tolist() == [2.0] * 3
    assert one[torch.tensor([0, 2])].copy_(plain[:2]).to("standin:1").device == other.device
