"""Reports: run folders side by side.

Read `runs` first, then `summary` (which settings differ, what they come to) and `ablation` (its statistics). `page` is
the file that a browser shows.
"""
