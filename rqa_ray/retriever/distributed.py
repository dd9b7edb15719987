"""Rank, number of ranks, and the gather that keeps gradients.

Without a process group, all functions work for one rank.
"""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Returns whether there is a process group with more than one rank; asked anew at each call."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Returns the rank of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Returns the number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates the ranks' tensors of equal shape (R, ...) to (W * R, ...), without gradients."""
    if not is_distributed():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_with_gradient(tensor: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gathers fp32 rows (R, D) and their int64 numbers (R, n) of all ranks, in one collective.

    The backward pass returns to each rank the gradient of its own rows, summed over all ranks. The idea is from
    lightly's `GatherLayer`. Only collectives that both gloo and nccl have are used.
    """
    return _GatherWithGradient.apply(tensor, ids) if is_distributed() else (tensor, ids)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.num_rows = len(tensor)
        # As int32, because copying the bits of an id as floating-point numbers might change them.
        parts = [tensor.contiguous().view(torch.int32), ids.contiguous().view(torch.int32)]
        widths = [part.shape[1] for part in parts]
        values, numbers = gather(torch.cat(parts, dim=1)).split(widths, dim=1)
        gathered = values.contiguous().view(torch.float32), numbers.contiguous().view(torch.int64)
        ctx.mark_non_differentiable(gathered[1])
        return gathered

    @staticmethod
    def backward(ctx, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.num_rows :][: ctx.num_rows], None


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Returns whether a flag is set on any rank; the answer is the same on all ranks."""
    return any_ranks([flag], device)[0]


def any_ranks(flags: list[bool], device: torch.device | str = "cpu") -> list[bool]:
    """Does `any_rank` for several flags, in one collective."""
    if not is_distributed():
        return flags
    values = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.bool().tolist()


def barrier() -> None:
    """Waits for all ranks."""
    if is_distributed():
        dist.barrier()
