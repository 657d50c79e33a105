"""What a compiled train step says about itself: memory, work and traffic of one device."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from bigjax.preflight.plan.hlo import costs as hlo
from bigjax.preflight.plan.hlo import cycles
from bigjax.preflight.plan.hlo.cycles import Cost, Operation
from bigjax.preflight.plan.traffic import Collective


@dataclass(frozen=True)
class Compiled:
    """One compiled step, per device; sizes in bytes.

    Attributes:
      argument_bytes, output_bytes, alias_bytes, temp_bytes, code_bytes: the compiler's memory analysis. Donated
        arguments are both argument and output, and counted in alias.
      peak_bytes: what is alive at once at most, room that lies between arrays not counted.
      flops: of matrix products, loops counted as often as they run.
      bytes_accessed: operands and results of every instruction, an estimate of the traffic with device memory.
      arguments: name -> the shape of each array that goes in, one device's part, padding included.
      uncounted_calls: kernels whose work the compiler does not state.
      cost: the compiler's estimate of cycles, by operation; the TPU compiler alone states any.
      compile_s: seconds of compilation, tracing excluded.
    """

    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    code_bytes: int
    peak_bytes: int
    flops: int
    bytes_accessed: int
    collectives: list[Collective]
    largest_buffers: list[dict[str, Any]]
    arguments: dict[str, tuple[int, ...]]
    uncounted_calls: list[str]
    cost: Cost
    compile_s: float

    @property
    def needed_bytes(self) -> int:
        """Device memory that the step needs: what goes in and out (once where donated), temporaries and program."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes + self.code_bytes

    @staticmethod
    def from_dict(mapping: dict[str, Any]) -> "Compiled":
        """Undo `dataclasses.asdict`."""
        collectives = [Collective(**{**one, "mesh_axes": tuple(one["mesh_axes"])}) for one in mapping["collectives"]]
        arguments = {name: tuple(shape) for name, shape in mapping["arguments"].items()}
        operations = tuple(Operation(**one) for one in mapping["cost"]["operations"])
        cost = Cost(**{**mapping["cost"], "operations": operations})
        return Compiled(**{**mapping, "collectives": collectives, "arguments": arguments, "cost": cost})


def read(compiled: Any, mesh_shape: dict[str, int], compile_s: float) -> Compiled:
    """Read a `jax.stages.Compiled` on a mesh of `mesh_shape`."""
    memory = compiled.memory_analysis()
    module = hlo.parse(compiled.as_text())
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        flops=hlo.flops(module),
        bytes_accessed=hlo.bytes_accessed(module),
        collectives=hlo.collectives(module, mesh_shape),
        largest_buffers=[asdict(buffer) for buffer in hlo.largest_buffers(module)],
        arguments=hlo.arguments(module),
        uncounted_calls=list(module.uncounted_calls),
        cost=cycles.cost(module),
        compile_s=round(compile_s, 2),
    )


def compile_and_read(lowered: Any, mesh_shape: dict[str, int]) -> tuple[Any, Compiled]:
    """Compile a lowered step; return it and what it says about itself."""
    start = time.perf_counter()
    compiled = lowered.compile()
    return compiled, read(compiled, mesh_shape, time.perf_counter() - start)
