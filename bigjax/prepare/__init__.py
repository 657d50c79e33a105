"""Preparation: raw records become a source, by steps that a config declares.

Read `step` first (what a step is, and the steps that there are), then `pipeline` (what a config declares), `running`
(stages, workers and what a kill leaves behind) and `counting` (what the report says). `reading` finds records in
files. The steps themselves are one file each, in `text`, `tables` and `images`; `sides` splits records into sides or
folds.
"""
