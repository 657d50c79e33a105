"""The study of low precision: what int8 and fp8 products, and moments in bfloat16, cost in loss."""
