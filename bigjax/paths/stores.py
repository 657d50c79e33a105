"""The object stores that fsspec knows, opened the way bigjax needs them."""

import functools
import os
from typing import Any

from bigjax.errors import UserError

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""The package that a scheme needs besides fsspec."""


@functools.cache
def file_system(scheme: str) -> Any:
    """Return fsspec's file system for a scheme, which keeps no listing: another process may have changed it.

    Raises:
        UserError: nothing is known of the scheme, or a package that it needs is not installed.
    """
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("s3", "s3a"):
        # One try: `repeated` is what tries again, and says so. Every array has a digest of its own, so a second one of
        # each request, in the pieces that it needs, would take time alone.
        options["config_kwargs"] = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 10,
            "read_timeout": 60,
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        options["endpoint_url"] = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        found = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        package = PACKAGES.get(scheme, getattr(error, "name", None) or "another package")
        extra = "pip install 'bigjax[cloud]'" if package in ("s3fs", "gcsfs") else f"pip install {package}"
        raise UserError(f"{scheme}:// needs {package}, which is not installed: {extra}") from error
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in ("s3", "gs"))
        raise UserError(f"{scheme}:// is no store that fsspec knows: {known} are such, among others") from error
    if scheme in ("s3", "s3a"):
        found.retries = 1
    return found
