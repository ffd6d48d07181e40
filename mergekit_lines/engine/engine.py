"""The merge itself: sources in, kernels, shards out; one output tensor after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from mergekit.common import ModelReference
from mergekit.io.tasks import GatherTensors
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.sources import HeldTensor, Source, whole
from mergekit_lines.checkpoint.writer import Slot
from mergekit_lines.engine.jobs import Job, States
from mergekit_lines.engine.norms import tensor_norms
from mergekit_lines.engine.pieces import Sink, TensorPieces, merge_tensor, rescale_tensor
from mergekit_lines.engine.ranks import spectrum_terms
from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.engine.vectors import TaskVectors
from mergekit_lines.engine.workers import Workers
from mergekit_lines.errors import LinesError, teller
from mergekit_lines.kernels.compiled.loading import library
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.pieces import Kernel
from mergekit_lines.kernels.sparsity import Sparsity
from mergekit_lines.methods.registry import registered

# A GPU wants one piece read while another is computed, and holds each of them.
DEVICE_THREADS = 2
Streamed = tuple[Job, TensorPieces]
# Stands for a method without a kernel where its task vector is only scaled.
ANY = Merge((Sparsity("none"),), (1.0,))


class Writer(Protocol):
    """Where the output goes: shards, or the parameters of a model."""

    def wants(self, name: str) -> bool:
        """Tell whether the tensor is to be merged."""

    def slot(self, name: str) -> Slot:
        """Return what the tensor has to be."""

    def sink(self, name: str) -> Sink:
        """Return the place of the tensor."""

    def finished(self, name: str) -> None:
        """Take note that the tensor is in its place."""

    def close(self) -> None:
        """End, and see that what was stored stays."""

    def settle(self) -> None:
        """Wait for what is on its way to the disk."""

    def abandon(self) -> None:
        """End after a failure."""


@contextmanager
def ending(workers: Workers, writer: Writer) -> Iterator[None]:
    """End threads and writer with the block: after Ctrl-C or a signal, without the disk.

    Raises:
        OSError: the last shard could not be made durable.
    """
    try:
        yield
    except BaseException as error:
        try:
            workers.close()
            if isinstance(error, Exception):
                writer.settle()
        finally:  # a second Ctrl-C comes while the first one's threads end
            writer.abandon()
        raise
    workers.close()
    writer.close()


class Engine:
    """Merges the tensors of a plan.

    Where the wrapped method has a kernel, a tensor goes through memory in pieces; otherwise the
    method gets its inputs whole.

    Args:
        models: the recipe's models.
        writer: takes the output.
        options: mergekit's flags; device and number of threads count here.
        vectors: keeps task vectors for other coefficients, where there will be some.
    """

    def __init__(
        self,
        models: OpenedModels,
        writer: Writer,
        options: MergeOptions,
        vectors: TaskVectors | None = None,
    ) -> None:
        self.models, self.writer, self.vectors = models, writer, vectors
        self.device, self._quiet = torch.device(options.device or "cpu"), options.quiet
        on_cpu = self.device.type == "cpu"
        self.workers = Workers(options.num_threads if on_cpu else DEVICE_THREADS)
        self.states, self._following = States(), dict[str, LinesTask]()

    def wants(self, name: str) -> bool:
        """Tell whether the output has this tensor and an interrupted run left it undone."""
        return self.writer.wants(name)

    def order(self, tasks: Sequence[LinesTask]) -> None:
        """Take the order in which tensors will be merged, to read ahead and to get ready."""
        names = [task.output_weight.name for task in tasks]
        if self.workers.library is None and self.device.type == "cpu":
            slots = [self.writer.slot(name) for name in names if self.writer.wants(name)]
            entries = sum(math.prod(slot.shape) for slot in slots)
            self.workers.library = library(entries, teller(quiet=self._quiet))
        self._following = dict(zip(names, tasks[1:], strict=False))

    def gather(self, task: GatherTensors) -> dict[ModelReference, torch.Tensor]:
        """Return a tensor of every model, whole."""
        return {model: whole(source) for model, source in self._sources(task).items()}

    def merge(
        self, task: LinesTask, tensors: dict[ModelReference, torch.Tensor] | None = None
    ) -> None:
        """Merge one tensor into its place in the output.

        Args:
            task: the tensor's task, with its coefficient.
            tensors: the inputs, where they are not read from the models as they are.

        Raises:
            LinesError: names the tensor.
        """
        name, sources = task.output_weight.name, self.inputs(task, tensors)
        self._read_ahead(name)
        sink, slot = self.writer.sink(name), self.writer.slot(name)
        with task.failures(sources):
            streamed = self.streamed(task, sources)
            if streamed and streamed[1].shape != slot.shape:
                raise LinesError(
                    f"tensor {name}: found the shape {streamed[1].shape}, wanted {slot.shape} by "
                    f"the models' configs. Save the models again, as safetensors."
                )
            if self.vectors is None:
                self._compute(task, sources, streamed, slot, sink)
            else:
                self._rescale(self.vectors, task, sources, streamed, slot, sink)
        self.writer.finished(name)

    def _rescale(
        self,
        vectors: TaskVectors,
        task: LinesTask,
        sources: dict[ModelReference, Source],
        streamed: Streamed | None,
        slot: Slot,
        sink: Sink,
    ) -> None:
        """Merge a tensor by the wrapped method's task vector, which is computed once."""
        job, pieces = streamed or self.rescalable(task, sources) or (None, None)
        # A sum is had from the shards as fast, and takes no place.
        if job is None or pieces is None or (streamed and job.merge.linear):
            self._compute(task, sources, streamed, slot, sink)
        elif (kept := vectors.find(task)) is not None:
            rescale_tensor(job, pieces, kept, slot.dtype, sink)
        else:
            vector = vectors.sink(task, pieces.shape, pieces.dtype)
            try:
                self._compute(task, sources, streamed, slot, sink, vector)
            except BaseException:
                vectors.drop(vector)
                raise
            vectors.keep(vector)

    def _compute(
        self,
        task: LinesTask,
        sources: dict[ModelReference, Source],
        streamed: Streamed | None,
        slot: Slot,
        sink: Sink,
        vector: Sink | None = None,
    ) -> None:
        """Merge a tensor in pieces, or let the wrapped method itself do it."""
        if streamed:
            state = self.states.take(streamed[0])
            merge_tensor(*streamed, slot.dtype, sink, vector, state)
            return
        held = {model: whole(source).to(self.device) for model, source in sources.items()}
        # An adapted tensor is fp32, and its model is not.
        dtype = str(slot.dtype).removeprefix("torch.")
        result = task.model_copy(update={"out_dtype": dtype}).merge_whole(held, vector)
        if result is None or (tuple(result.shape), result.dtype) != (slot.shape, slot.dtype):
            gave = "nothing" if result is None else f"{result.dtype} {tuple(result.shape)}"
            raise LinesError(
                f"tensor {slot.name}: {task.method_name} gave {gave}, wanted {slot.dtype} "
                f"{slot.shape}. Use another wrap for this tensor."
            )
        sink.write(0, result.reshape(-1))

    def norms(
        self,
        task: LinesTask,
        collector: Any,
        tensors: dict[ModelReference, torch.Tensor] | None = None,
    ) -> None:
        """Put one tensor's terms of Eq. 2 into the collector.

        Raises:
            LinesError: names the tensor.
        """
        with self._visiting(task, tensors) as (sources, streamed):
            if streamed:
                name = task.output_weight.name
                collector.terms[name] = tensor_norms(*streamed, collector.power, self.states)
            else:
                held = {model: whole(source).to(self.device) for model, source in sources.items()}
                task.merge_whole(held, collector=collector)

    def count(
        self,
        task: LinesTask,
        count: Callable[[Job, TensorPieces], object],
        tensors: dict[ModelReference, torch.Tensor] | None = None,
    ) -> None:
        """Let somebody go over one tensor's pieces; one that has no kernel has no entries to count.

        Raises:
            LinesError: names the tensor.
        """
        with self._visiting(task, tensors) as (_, streamed):
            if streamed:
                count(*streamed)

    @contextmanager
    def _visiting(
        self, task: LinesTask, tensors: dict[ModelReference, torch.Tensor] | None
    ) -> Iterator[tuple[dict[ModelReference, Source], Streamed | None]]:
        """Give a tensor's inputs, and how they go by in pieces, while the next is read ahead."""
        sources = self.inputs(task, tensors)
        self._read_ahead(task.output_weight.name)
        with task.failures(sources):
            yield sources, self.streamed(task, sources)

    def spectrum(
        self,
        task: LinesTask,
        collector: Any,
        tensors: dict[ModelReference, torch.Tensor] | None = None,
    ) -> None:
        """Put what a sample of one tensor tells of its block's update into the collector.

        Raises:
            LinesError: names the tensor.
        """
        name, sources = task.output_weight.name, self.inputs(task, tensors)
        base = sources.pop(task.base_model, None)
        with task.failures(sources):
            own = base and spectrum_terms(name, base, sources, task.input_dtype())
        if own:
            collector.add(name, *own)

    def _sources(self, gather: Any) -> dict[ModelReference, Source]:
        sources = {
            model: self.models.source(model, weight) for model, weight in gather.weight_info.items()
        }
        return {model: source for model, source in sources.items() if source is not None}

    def inputs(
        self, task: LinesTask, tensors: dict[ModelReference, torch.Tensor] | None
    ) -> dict[ModelReference, Source]:
        """Return a tensor of every model that has it: those of the files, or ``tensors``."""
        if tensors is None:
            return self._sources(task.gather_tensors)
        return {model: HeldTensor(tensor.contiguous()) for model, tensor in tensors.items()}

    def streamed(self, task: LinesTask, sources: dict[ModelReference, Source]) -> Streamed | None:
        """Return how to merge the tensor in pieces, or None where it has to be whole."""
        merge = task.kernel({model: source.dtype for model, source in sources.items()})
        return None if merge is None else self._in_pieces(task, sources, merge)

    def rescalable(self, task: LinesTask, sources: dict[ModelReference, Source]) -> Streamed | None:
        """Return how to rescale a task vector that came from a method without a kernel."""
        if not all(source.dtype.is_floating_point for source in sources.values()):
            return None
        return self._in_pieces(task, sources, ANY)

    def _in_pieces(
        self, task: LinesTask, sources: dict[ModelReference, Source], merge: Kernel
    ) -> Streamed | None:
        base = task.base_model
        first = sources.get(base)
        tuned = [model for model in task.model_order if model != base and model in sources]
        if first is None or 0 in first.shape or not tuned:
            return None
        if any(source.shape != first.shape for source in sources.values()):
            return None
        job = Job(
            name=task.output_weight.name,
            models=[base, *tuned],
            wrap=registered(task.method_name).wrapped.spec.name,
            merge=merge,
            coefficient=task.coefficient,
            seed=task.seed,
            allow_nonfinite=task.parameters["allow_nonfinite"],
        )
        pieces = TensorPieces(
            first,
            [sources[model] for model in tuned],
            task.input_dtype(),
            self.device,
            self.workers,
            merge,
        )
        return job, pieces

    def _read_ahead(self, name: str) -> None:
        """Ask for the next tensor's bytes while this one is merged."""
        task = self._following.get(name)
        if task is None or not isinstance(task.gather_tensors, GatherTensors):
            return
        for model, weight in task.gather_tensors.weight_info.items():
            stored = self.models.stored(model, weight)
            if stored is not None:
                stored.will_need()

    def finish(self) -> None:
        """Wait for the disk, and see that the inputs are still what they were.

        Raises:
            LinesError: an input changed.
            OSError: a shard could not be made durable.
        """
        self.close()
        self.models.check_unchanged()

    def close(self) -> None:
        """End the threads and wait for the disk.

        Raises:
            OSError: the last shard could not be made durable.
        """
        self.workers.close()
        self.writer.close()
