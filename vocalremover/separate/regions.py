"""Regional compilation: the blocks that a network repeats are compiled by torch, what lies between them is not.

Blocks of one class and shape share what was compiled for the first of them, so that the wait at the start does not grow
with the depth of the network.
"""

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor, nn

from vocalremover.devices import lacks_memory
from vocalremover.networks import compact, full, newft, primer, resnet, roformer, thin, v2b, v3, v7, v8, v9, v10

Network = Callable[..., Tensor]
Compiler = Callable[[Callable], Callable]

BLOCKS: tuple[type[nn.Module], ...] = (
    compact.Block, compact.FrameAttention,
    full.Level, full.FrameTransformerEncoder, full.FrameTransformerDecoder,
    newft.FrameTransformerEncoder, newft.FrameTransformerDecoder,
    primer.ResBlock,
    resnet.ResBlock,
    roformer.Transformer,
    thin.ResBlock, thin.FrameTransformerEncoder, thin.FrameTransformerDecoder,
    v2b.FrameTransformerEncoder, v2b.FrameTransformerDecoder,
    v3.FrameTransformerEncoder,
    v7.FrameEncoder, v7.FrameDecoder, v7.FrameTransformerEncoder, v7.FrameTransformerDecoder,
    v8.FrameEncoder, v8.FrameDecoder, v8.FrameTransformerEncoder, v8.FrameTransformerDecoder,
    v9.FrameEncoder, v9.FrameTransformerEncoder,
    v10.ResBlock, v10.FrameTransformerEncoder, v10.FrameTransformerDecoder,
)  # fmt: skip
"""What is compiled as a whole, wherever a network has it."""

SHAPES = 64
"""So many shapes of one class's blocks are compiled. A U-Net has new ones on every level; torch's own limit is 8."""


class Regions:
    """`regions(inputs, **keywords)` is `run(inputs, **keywords)` with the network's blocks compiled, each once a shape.

    Elsewhere the network stays as it is: that is for inputs of a rare shape, which compiling would keep waiting longer
    than it saves. Where the first call fails, `trouble` says why and the blocks run as they are.
    """

    def __init__(self, network: nn.Module, run: Network, compiler: Compiler | None = None) -> None:
        """compiler: from a function to a faster one; torch.compile with static shapes by default."""
        self.trouble: str | None = None
        self._run = run
        self._worked = False
        self._turn = Lock()  # meanwhile the blocks are other ones for everybody
        self._blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
        self._compiled = [(compiler or _compile)(block.forward) for block in self._blocks]

    def __call__(self, inputs: Tensor, **keywords: object) -> Tensor:
        """One thread at a time; raises what the network raises."""
        with self._turn:
            if self.trouble is None:
                answer = self._fast(inputs, keywords)
                if answer is not None:
                    return answer
        return self._run(inputs, **keywords)

    def _fast(self, inputs: Tensor, keywords: dict[str, object]) -> Tensor | None:
        """By the compiled blocks; None, and `trouble`, where they cannot be had."""
        for block, compiled in zip(self._blocks, self._compiled, strict=True):
            block.forward = compiled
        try:
            with torch._dynamo.config.patch(cache_size_limit=SHAPES):
                answer = self._run(inputs, **keywords)
            self._worked = True
            return answer
        except RuntimeError as error:
            if self._worked or lacks_memory(error):
                raise
            self.trouble = (str(error).strip().splitlines() or [type(error).__name__])[0]
        finally:
            for block in self._blocks:
                del block.forward
        return None


def _compile(forward: Callable) -> Callable:
    return torch.compile(forward, dynamic=False)
