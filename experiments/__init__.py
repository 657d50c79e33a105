"""Commands: the place where the parts of the library are composed and effects happen.

Read `minimal` first, the library on one page; then `train`, whose loop is there to be copied; `begin` and `finish` are
what it does before and after.
"""
