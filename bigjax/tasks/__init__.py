"""Tasks: what a run minimises. An objective returns sums and counts, so that averages are exact under any split."""
