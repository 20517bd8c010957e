"""CUDA graphs: which tensors lie in their memory, and evaluations that are captured and played back as graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.replay.microbatch import Context, Microbatch


def owned_by_graphs(tensors: Iterable[Tensor]) -> bool:
    """Say whether one of these tensors lies in the memory of a CUDA graph, which the graph's next run overwrites.

    Gradients do where the model was compiled with mode="reduce-overhead" or went through
    `torch.cuda.make_graphed_callables`. The answer comes from the allocator's list of blocks, and takes longer the more
    blocks there are.
    """
    pointers = [tensor.data_ptr() for tensor in tensors if tensor.is_cuda and tensor.layout == torch.strided]
    if not pointers or torch.cuda.get_allocator_backend() != "native":
        return False
    # Graphs allocate in their own pools; (0, 0) is the pool of everything else.
    pools = [segment for segment in torch.cuda.memory_snapshot() if segment.get("segment_pool_id", (0, 0)) != (0, 0)]
    return any(
        pool["address"] <= pointer < pool["address"] + pool["total_size"] for pool in pools for pointer in pointers
    )


class Player:
    """Captures evaluations as CUDA graphs and plays them back, with one launch in place of one for each kernel.

    Kernels, their order and their random numbers are those of an evaluation without graphs. What a closure computes on
    the host is not computed again. It could depend on the point only by waiting for the device, and capturing refuses
    closures that wait.

    Args:
        parameters: The parameters whose gradients are wanted.
        device: Their device.
    """

    def __init__(self, parameters: Sequence[Tensor], device: torch.device) -> None:
        self._parameters = parameters
        self._stream = torch.cuda.Stream(device)
        # A new graph can share the memory pool of one that is alive, so the last step's graph is kept until then.
        self._last: torch.cuda.CUDAGraph | None = None

    def captured(self, microbatches: Sequence[Microbatch]) -> list[Played]:
        """Return CUDA graphs of these microbatches, which must have been evaluated before.

        Raises:
            RecorderError: A closure waits for the device, or does something else that graphs do not allow.
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
                # "thread_local", since other threads (a data loader's) go on using the GPU.
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
        """Make an empty capture, since generators stay in capture mode until a capture with them has ended well."""
        graph = torch.cuda.CUDAGraph()
        _register(graph, microbatch)
        with torch.cuda.stream(torch.cuda.Stream(self._stream.device)):
            graph.capture_begin(capture_error_mode="thread_local")
            torch.zeros((), device=self._stream.device)
            graph.capture_end()


def _register(graph: torch.cuda.CUDAGraph, microbatch: Microbatch) -> None:
    """Register with a graph the user's CUDA generators that a microbatch draws from; it knows torch's default ones."""
    for generator, _ in microbatch.surroundings.random.others:
        if isinstance(generator, torch.Generator) and generator.device.type == "cuda":
            graph.register_generator_state(generator)


class Played:
    """A microbatch whose evaluation is a CUDA graph.

    Args:
        microbatch: The captured microbatch.
        graph: The capture.
        loss: The tensor in which the graph leaves the loss.
        gradients: Parameters, each with the tensor in which the graph leaves its gradient.
    """

    def __init__(
        self, microbatch: Microbatch, graph: torch.cuda.CUDAGraph, loss: Tensor, gradients: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.graph = graph
        self._microbatch = microbatch
        self._loss = loss
        self._gradients = gradients

    def evaluate(self, users: Context = contextlib.nullcontext) -> Tensor:
        """Do what `Microbatch.evaluate` does; the next call overwrites loss and gradients."""
        self._microbatch.surroundings.restore()
        with users():
            self.graph.replay()
        for parameter, gradient in self._gradients:
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        return self._loss
