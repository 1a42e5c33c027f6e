"""Log-probabilities of target tokens after a frozen head, without the logits of a whole batch.

Logits are the largest thing a small model computes (tokens x vocabulary), and plain autograd holds
them three times: as they are, normalised, and their gradient. Here the head runs over a few tokens
at a time. With z = W h + b, the score of token t and its gradient in h are

    s = z_t - log sum_v exp(z_v)
    ds/dh = W' (onehot(t) - softmax(z))        (1)

so (1) is formed right after s and of all logits nothing stays. The products are those of plain
autograd; each token's numbers depend on its own h alone.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Logits of one go: few enough to stay small beside a batch's activations, and enough tokens that
# reading the head's weights again for every go does not show.
_CPU_BYTES: Final = 16 * 2**20
_CUDA_BYTES: Final = (64 * 2**20, 512 * 2**20)
_FEWEST_TOKENS: Final = 128


def can_score_tokens(head: nn.Module) -> bool:
    """Whether `token_scores` may stand for a head: a plain linear layer that is not trained."""
    return (
        type(head) is nn.Linear
        and not any(one.requires_grad for one in head.parameters())
        and not head._forward_hooks
        and not head._forward_pre_hooks
        and "forward" not in vars(head)
    )


def token_scores(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """Log-probability of each target token.

    Args: hidden: (n, width), the head's inputs. head: `can_score_tokens`. targets: (n,) int64,
    0 <= target < vocabulary. The product runs in the head's type, the softmax in float32.
    Returns: (n,) float32 on the head's device, nats; differentiable once, in `hidden` alone.
    """
    device = head.weight.device
    hidden, targets = hidden.to(device), targets.to(device)
    scores: Tensor = _TokenScores.apply(  # type: ignore[no-untyped-call]
        hidden,
        head.weight,
        head.bias,
        targets,
        torch.is_grad_enabled() and hidden.requires_grad,
    )
    return scores


def _tokens_at_once(vocabulary: int, device: torch.device) -> int:
    return max(_FEWEST_TOKENS, _bytes_at_once(device) // (4 * vocabulary))


def _bytes_at_once(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    # A GPU wants few, large kernels; a share of its memory is small beside its activations.
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(_CUDA_BYTES[0], min(_CUDA_BYTES[1], memory // 256))


class _TokenScores(torch.autograd.Function):
    """The scores; keeps (1) for every token, which is as large as `hidden`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        with_gradient: bool,
    ) -> Tensor:
        count, vocabulary = len(hidden), len(weight)
        scores = hidden.new_empty(count, dtype=torch.float32)
        slopes = hidden.new_empty((count, hidden.shape[1]), dtype=weight.dtype)
        size = _tokens_at_once(vocabulary, hidden.device)
        for first in range(0, count, size):
            part = slice(first, min(first + size, count))
            logits = functional.linear(hidden[part].to(weight.dtype), weight, bias).float()
            wanted = targets[part].unsqueeze(1)
            total = torch.logsumexp(logits, dim=1, keepdim=True)
            scores[part] = (logits.gather(1, wanted) - total).squeeze(1)
            if with_gradient:
                # -(softmax - onehot), in the logits' own memory.
                slope = logits.sub_(total).exp_().neg_()
                slope.scatter_add_(1, wanted, torch.ones_like(wanted, dtype=slope.dtype))
                torch.mm(slope.to(weight.dtype), weight, out=slopes[part])
        ctx.save_for_backward(slopes if with_gradient else None)
        ctx.dtype = hidden.dtype
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes.float() * grads[0].unsqueeze(1)).to(ctx.dtype), None, None, None, None
