"""The random numbers of any places, written out: what the maps of the tests are made of."""

from causalmm.counterfactual.random_weights import (
    as_words,
    key_hashes,
    number,
    query_hashes,
    stream,
)


def uniform(seed, draws, layer, heads, query_position, key_position):
    """The numbers of so many heads, in (0, 1], float32 [S, ..., H, Q, K].

    Positions are integers [..., Q] and [..., K]; the dimensions before them (samples, where each
    has its own left padding) are those of the result.
    """
    states = as_words([stream(seed, int(draw), layer) for draw in draws], query_position.device)
    states = states.view(-1, *[1] * (query_position.ndim - 1))
    rows = query_hashes(states, heads, query_position)
    return number(rows.unsqueeze(-1), key_hashes(key_position)[..., None, None, :])
