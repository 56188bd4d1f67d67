"""How it is known that memory ran out."""

import torch


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory ran out: on a CPU in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
