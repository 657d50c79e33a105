"""What is measured of predictions beyond a loss. Functions of arrays and strings, which know no model.

`classification` of texts and words, `entities` that tags spell out, `answers` found in texts, `texts` as written.
"""
