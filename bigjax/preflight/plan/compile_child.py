"""The process that compiles one step for devices that are not here; `compiler.py` starts it and bounds it.

Reads one JSON request from stdin and writes one JSON answer to stdout. A compiler may crash and take its process with
it, or use all memory, so nothing else happens here.
"""

import hashlib
import json
import os
import re
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt")


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not mix with the answer
    json.dump(answer(request), out)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile what `request` asks for, or find it in the cache.

    The request holds `config`, `topology`, `num_slices` and `cache` (a folder). The answer is `{"compiled": ...}`, or
    `{"out_of_memory_bytes": N}` with the bytes of temporaries that the compiler could not place, or `{"error": TEXT}`.
    """
    import jax

    from bigjax import sharding
    from bigjax.config import Config, strict
    from bigjax.errors import UserError
    from bigjax.preflight.plan import compiled, devices, program
    from bigjax.run import folder as run_folder
    from bigjax.run.json_files import write_json

    cfg = strict.from_dict(Config, request["config"])
    topology = devices.parse(request["topology"], request["num_slices"])
    try:
        mesh = sharding.make_mesh(cfg.mesh, devices.of(topology))
        lowered = program.build(cfg, mesh).trace().lower(lowering_platforms=(devices.LOWERING[topology.platform],))
    except UserError as error:
        return {"error": str(error)}
    text = lowered.as_text()
    versions = run_folder.versions(PACKAGES)
    level, kept = os.environ.get("JAX_OPTIMIZATION_LEVEL", ""), [field.name for field in fields(compiled.Compiled)]
    wired = devices.libtpu_options(topology) if topology.platform == "tpu" else None
    named = [text, request["topology"], request["num_slices"], wired, level, versions, kept]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]
    path = Path(request["cache"], f"{key}.json")
    if path.is_file():
        return json.loads(path.read_text()) | {"cached": True}
    try:
        _, found = compiled.compile_and_read(lowered, dict(mesh.shape))
        result: dict[str, Any] = {"compiled": asdict(found)}
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory_bytes(str(error))
        if needed is None:
            return {"error": str(error).splitlines()[0][:500]}
        result = {"out_of_memory_bytes": needed}
    result["versions"] = versions
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result | {"cached": False}


def out_of_memory_bytes(message: str) -> int | None:
    """Return the bytes that the TPU compiler says it could not place; None for another message."""
    match = re.search(r"total memory required[^(]*\(([\d.]+)([KMGTB])\)", message)
    return int(float(match[1]) * UNITS[match[2]]) if match else None


if __name__ == "__main__":
    main()
