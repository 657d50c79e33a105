def scaled(x_BSD, gate_D):
    return x_BSD * gate_D.astype(x_BSD.dtype)
