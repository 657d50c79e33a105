"""A resolved config, and the difference between two, as text."""

from bigjax.config import Config, strict


def format_config(cfg: Config) -> str:
    """Return one `section.field = value` a line with plumbing fields marked, then the fingerprint."""
    lines = []
    for path, value, plumbing in strict.leaves(cfg):
        line = f"{path} = {value!r}"
        lines.append(f"{line:<50} # plumbing" if plumbing else line)
    return "\n".join([*lines, f"fingerprint = {strict.fingerprint(cfg)}"])


def format_diff(name_a: str, a: Config, name_b: str, b: Config) -> str:
    """Return one line for each field that differs, marked maths or plumbing, then both fingerprints."""
    lines = [
        f"{'plumbing' if plumbing else 'maths':<8}  {path}: {value_a!r} -> {value_b!r}"
        for path, value_a, value_b, plumbing in strict.diff(a, b)
    ]
    width = max(len(name_a), len(name_b))
    return "\n".join(
        [
            *(lines or ["no field differs"]),
            f"fingerprint of {name_a:<{width}} = {strict.fingerprint(a)}",
            f"fingerprint of {name_b:<{width}} = {strict.fingerprint(b)}",
        ]
    )
