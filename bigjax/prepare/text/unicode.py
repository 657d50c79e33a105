"""Repair of text that was decoded wrongly, by ftfy, with the choices of datatrove's formatter."""

from bigjax.prepare.step import Step
from bigjax.prepare.text import blocks


def _build(options, cfg):
    del options
    blocks.imported("ftfy")
    return blocks.formatting(blocks.imported("datatrove.pipeline.formatters.ftfy").FTFYFormatter(), cfg)


STEP = Step(_build)
