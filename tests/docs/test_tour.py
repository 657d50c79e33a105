"""The tour: notebook and text in step, executed anew in under 3 minutes, and what it shows is so."""

import re
import resource

import nbformat
import pytest

from docs.hooks import tour
from tests.commands import ROOT

jupytext = pytest.importorskip("jupytext", reason="needs the extra docs")
