"""What the variational reading of dropout says about weight decay."""


def weight_decay(length_scale: float, dropout: float, num_points: int, precision: float = 1.0) -> float:
    """Return the factor on ||W||^2 beside the mean loss, `l^2 (1 - p) / (2 N tau)`.

    Dropout at rate p is variational inference under a Gaussian prior of length-scale l on the weights, if the objective
    has this penalty (Gal & Ghahramani 2016, "Dropout as a Bayesian approximation", section 3 and appendix 4.1, solved
    for lambda). N is the number of terms that the loss is a mean over in one pass over the training data: of
    a language model, whose loss is a mean over tokens, its tokens. The precision tau is that of a Gaussian likelihood;
    for classes, as tokens are, it is 1.

    The gradient of the penalty is `2 * weight_decay(...) * W`, and that is what `optim.weight_decay` multiplies with W
    for the optimizers that add it to the gradient (`sgd`, `adam`): set it to twice the value returned here. AdamW
    decays weights apart from the loss, which has no such reading. The theory also decays biases, which bigjax spares.
    """
    return length_scale**2 * (1 - dropout) / (2 * num_points * precision)
