"""The prefix cache: bounded in bytes, least recently used first out, longest common prefix found."""

from __future__ import annotations

import torch

from adapter.serve.kv_cache import PrefixCache


def kv(tokens):
    return torch.zeros(1, 2, 1, tokens, 4)  # 32 bytes a token


def test_evicts_the_least_recently_used_and_finds_the_longest_prefix():
    cache = PrefixCache(32 * 100)
    for start in range(10):
        cache.add("a", range(start * 100, start * 100 + 30), kv(30))
        assert cache.longest_prefix("a", range(start * 100, start * 100 + 31)).shape[3] == 30
    assert len(cache) == 3
    assert cache.longest_prefix("a", range(0, 31)) is None  # evicted
    assert cache.longest_prefix("b", range(900, 931)) is None  # other prompts
    assert cache.longest_prefix("a", [*range(900, 910), 7, 8]).shape[3] == 10
    cache.add("a", range(900, 940), kv(40))  # replaces the shorter entry
    assert len(cache) == 3 and cache.longest_prefix("a", range(900, 950)).shape[3] == 40
    assert cache.longest_prefix("a", range(900, 920)).shape[3] == 19  # the last token must be read


def test_an_entry_beyond_the_limit_is_not_kept():
    cache = PrefixCache(32 * 10)
    cache.add("a", range(6), kv(6))
    cache.add("a", range(11), kv(11))  # begins as the other does
    assert len(cache) == 1 and cache.bytes == 32 * 6
    cache.reserve(32 * 3)  # for prompts
    cache.add("a", range(8), kv(8))
    assert len(cache) == 1 and cache.longest_prefix("a", range(9)).shape[3] == 6
    cache.reserve(32 * 5)
    assert len(cache) == cache.bytes == 0
