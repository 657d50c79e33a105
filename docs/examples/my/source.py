"""Counting."""


def numbers():
    for first in range(200):
        yield {"text": " ".join(str(n) for n in range(first, first + 40))}
