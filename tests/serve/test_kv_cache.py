"""The prefix cache: bounded in bytes, least recently used first out, longest common prefix found."""

import torch

from adapter.serve.kv_cache import PrefixCache


def kv(tokens):
    return torch.zeros(1, 2, 1, tokens, 4)  # 32 bytes a token


def test_evicts_the_least_recently_used_and_finds_the_longest_prefix():
    cache = PrefixCache(32 * 100)
    for start in range(10):
        cache.add("a", range(start * 100, start * 100 + 30), kv(30))
        assert cache.longest_prefix("a", range(start * 100, start * 100 + 31)).shape[3] == 30
    assert len(list(cache)) == 3
    assert cache.longest_prefix("a", range(0, 31)) is None  # evicted
    assert cache.longest_prefix("b", range(900, 931)) is None  # other prompts
    assert cache.longest_prefix("a", [*range(900, 910), 7, 8]).shape[3] == 10
    cache.add("a", range(900, 940), kv(40))  # replaces the shorter entry
    assert len(list(cache)) == 3 and cache.longest_prefix("a", range(900, 950)).shape[3] == 40
    assert cache.longest_prefix("a", range(900, 920)).shape[3] == 19  # the last token must be read
