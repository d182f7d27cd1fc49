"""The stand-in for a GPU: it computes what the processor does, and refuses what a GPU refuses."""

import pytest
import torch
from tiny_models import tiny_model, token_ids


@pytest.mark.parametrize("place", ["standin:0", "standin:1"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mixtral"])
def test_a_model_computes_there(architecture, place):
    """Logits, tokens and gradients are the processor's, and tied parameters stay tied."""
    here, there = (tiny_model(architecture, attn_implementation="eager") for _ in range(2))
    parameters = list(there.parameters())
    assert all(
        one is other for one, other in zip(parameters, there.to(place).parameters(), strict=True)
    )
    tokens = token_ids()
    wanted = here(tokens, labels=tokens)
    outputs = there(tokens.to(place), labels=tokens.to(place))
    wanted.loss.backward()
    outputs.loss.backward()
    assert torch.equal(outputs.logits.cpu(), wanted.logits)
    for (name, one), other in zip(there.named_parameters(), here.parameters(), strict=True):
        assert (one.device, one.grad.device) == (torch.device(place), torch.device(place))
        torch.testing.assert_close(one.grad.cpu(), other.grad, msg=name)
    written = there.generate(tokens.to(place), max_new_tokens=5, do_sample=False)
    assert torch.equal(written.cpu(), here.generate(tokens, max_new_tokens=5, do_sample=False))


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


def test_random_numbers_are_its_own():
    """Each device draws from a state of its own, which `manual_seed` seeds."""
    torch.manual_seed(0)
    numbers = [torch.randn(4, device=place).cpu() for place in ("cpu", "standin:0", "standin:1")]
    torch.manual_seed(0)
    again = [torch.randn(4, device=place).cpu() for place in ("standin:1", "standin:0", "cpu")]
    assert all(map(torch.equal, again, reversed(numbers)))
    assert len({tuple(each.tolist()) for each in numbers}) == 3
