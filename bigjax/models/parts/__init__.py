"""What families are made of.

Read `layers` first (norms, embeddings, linear maps), then `blocks` (attention and feed-forward with their residual) and
`stacks` (many blocks, by scan or unrolled). `heads` reads logits off, `positions` are relative ones, `recurrence` is a
layer through time; `mup` derives initial values and multipliers from a base shape, `matrices` says what a matrix is.
"""
