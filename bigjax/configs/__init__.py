"""The configs of a clone, which lie in its folder `configs`; where bigjax is installed, this package is they."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "configs")]
