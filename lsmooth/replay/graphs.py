"""CUDA graphs: whose memory is theirs, and a step's evaluations played back as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.replay.microbatch import Context, Microbatch


def owned_by_graphs(tensors: Iterable[Tensor]) -> bool:
    """Say whether a CUDA graph owns the memory of one of these tensors, which its next run then overwrites.

    Gradients are such where a model was compiled with mode="reduce-overhead" or went through
    `torch.cuda.make_graphed_callables`. Asks the allocator for its books, which takes longer the more blocks there are.
    """
    pointers = [tensor.data_ptr() for tensor in tensors if tensor.is_cuda and tensor.layout == torch.strided]
    if not pointers or torch.cuda.get_allocator_backend() != "native":
        return False
    # Graphs allocate in pools of their own; (0, 0) is everyone else's.
    pools = [segment for segment in torch.cuda.memory_snapshot() if segment.get("segment_pool_id", (0, 0)) != (0, 0)]
    return any(
        pool["address"] <= pointer < pool["address"] + pool["total_size"] for pool in pools for pointer in pointers
    )


class Player:
    """Captures evaluations as CUDA graphs, and plays them back: one launch in place of one a kernel.

    Kernels, their order and their random numbers are those of an evaluation without graph. What a closure computes on
    the host is not computed again; it depends on the point only where the host waits for the device, which capturing
    refuses.

    Args:
        parameters: Whose gradients are wanted.
        device: Where they are.
    """

    def __init__(self, parameters: Sequence[Tensor], device: torch.device) -> None:
        self._parameters = parameters
        self._stream = torch.cuda.Stream(device)
        # A graph can have the memory of one that is still there: the last step's is kept until this step's has it.
        self._last: torch.cuda.CUDAGraph | None = None

    def captured(self, microbatches: Sequence[Microbatch]) -> list[Played]:
        """Return what stands in for these microbatches; they must have been evaluated before.

        Raises:
            RecorderError: One waits for the device, or does something else that graphs do not allow.
        """
        played: list[Played] = []
        for microbatch in microbatches:
            played.append(self._capture(microbatch, played[-1].graph if played else self._last))
        self._last = played[-1].graph
        return played

    def _capture(self, microbatch: Microbatch, before: torch.cuda.CUDAGraph | None) -> Played:
        graph = torch.cuda.CUDAGraph()
        microbatch.surroundings.restore()
        _register(graph, microbatch)
        kept = [parameter.grad for parameter in self._parameters]
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                # Other threads (a data loader's) go on using the GPU meanwhile.
                graph.capture_begin(None if before is None else before.pool(), capture_error_mode="thread_local")
                try:
                    for parameter in self._parameters:
                        parameter.grad = None
                    loss = microbatch.run()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            self._after_failure(microbatch)
            raise RecorderError(
                f"The closure cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); let nothing in it "
                "wait for the GPU (.item(), .cpu(), copies from memory that is not pinned), or leave out "
                "cuda_graphs=True."
            ) from error
        finally:
            gradients = [parameter.grad for parameter in self._parameters]
            for parameter, gradient in zip(self._parameters, kept, strict=True):
                parameter.grad = gradient
        current.wait_stream(self._stream)
        found = [(p, g) for p, g in zip(self._parameters, gradients, strict=True) if g is not None]
        return Played(microbatch, graph, loss, found)

    def _after_failure(self, microbatch: Microbatch) -> None:
        """Capture nothing: generators take themselves for captured until a capture that held them has ended well."""
        graph = torch.cuda.CUDAGraph()
        _register(graph, microbatch)
        with torch.cuda.stream(torch.cuda.Stream(self._stream.device)):
            graph.capture_begin(capture_error_mode="thread_local")
            torch.zeros((), device=self._stream.device)
            graph.capture_end()


def _register(graph: torch.cuda.CUDAGraph, microbatch: Microbatch) -> None:
    """Tell a graph of the generators of its own that a microbatch draws from; torch's own it knows."""
    for generator, _ in microbatch.surroundings.random.others:
        if isinstance(generator, torch.Generator) and generator.device.type == "cuda":
            graph.register_generator_state(generator)


class Played:
    """A microbatch whose evaluation is a CUDA graph.

    Args:
        microbatch: What was captured.
        graph: The capture.
        loss: Where the graph leaves the loss.
        gradients: Parameters, and where the graph leaves their gradients.
    """

    def __init__(
        self, microbatch: Microbatch, graph: torch.cuda.CUDAGraph, loss: Tensor, gradients: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.graph = graph
        self._microbatch = microbatch
        self._loss = loss
        self._gradients = gradients

    def evaluate(self, users: Context = contextlib.nullcontext) -> Tensor:
        """Do what `Microbatch.evaluate` does; loss and gradients last until the next call."""
        self._microbatch.surroundings.restore()
        with users():
            self.graph.replay()
        for parameter, gradient in self._gradients:
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        return self._loss
