"""Sparse layers: `routing` chooses experts for each token, `layers` applies them, `exchange` sends tokens to them."""
