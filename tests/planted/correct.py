"""The correct twins of the planted kernels."""

from forms import Arguments, call, chunks, kernel


@kernel
def by_token(a: Arguments):
    """Token by token: obeys every law, the reported ones included."""
    return call(a)


@kernel
def by_chunk(a: Arguments):
    """In chunks: obeys every required law."""
    return call(a, chunks)
