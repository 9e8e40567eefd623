"""From features to prompts: what the projections compute, on the tiny model."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from adapter.errors import BadInput, LoadError
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.config import AdapterConfig, VisionConfig
from adapter.method.label_projection import KIND_LENGTH, LabelProjection
from adapter.method.vision import VisualFeatures
from tests.tiny_models import random_adapter

GLOBAL = VisionConfig(encoder="any", feature_size=6, hidden=5)
LABEL = replace(
    GLOBAL, projection="label", num_classes=6, num_kinds=2, name_length=2,
    name_states=True, num_facts=1, fact_size=3, certainty=True,
)  # fmt: skip
QUERIES = VisionConfig(encoder="any", projection="queries", token_size=7, width=12, blocks=2, heads=3)
LENGTH = 4 + KIND_LENGTH + 3  # two names, a kind, a fact, how sure that is, and a free prompt


def features(rows=2):
    torch.manual_seed(1)
    return VisualFeatures(torch.randn(rows, 6), torch.randn(rows, 4), torch.randn(rows, 9, 7))


NAMES = torch.tensor([[5, 6], [7, -1], [8, 9], [10, 11], [12, -1], [13, 14]])
KINDS = torch.tensor([[20, 21], [22, -1]])
KIND_OF = torch.tensor([0, 0, 1, -1, 1, -1])


def spell(projection):
    """Six names, the last two of them concepts behind the encoder's four classes; two kinds."""
    projection.names.copy_(NAMES)
    projection.kinds[:, :2] = KINDS
    projection.kind_of.copy_(KIND_OF)
    projection.concept_bias[4:] = -30.0  # the head is silent
    projection.lead[:2] = torch.tensor([30, 31])
    projection.facts[0, :2] = torch.tensor([40, 41])
    projection.fact_weight[0, 1, 2] = 1.0
    projection.certainty_words.copy_(torch.tensor([50, 51, 52]))
    projection.certainty_bounds.copy_(torch.tensor([0.4, 0.35]))
    return projection


def visual_adapter(fingerprint, vision):
    adapter = random_adapter(fingerprint, spread=0.3, vision=vision, prompt_length=LENGTH, prompt_norm=True)
    if vision.projection == "label":
        spell(adapter.projection)
    return adapter


@pytest.mark.parametrize("vision", [GLOBAL, LABEL, QUERIES])
@torch.no_grad()
def test_an_image_changes_its_own_rows_logits_only(tiny, tiny_fingerprint, vision):
    adapter = visual_adapter(tiny_fingerprint, vision)
    ids = torch.arange(10)[None].repeat(3, 1)
    shown = features()
    kv = PromptKV.stack([adapter(tiny), adapter(tiny, shown)])
    got = tiny(input_ids=ids, prompt_kv=kv, prompt_rows=torch.tensor([2, 0, 1])).logits
    alone = [tiny(input_ids=ids[:1], prompt_kv=adapter(tiny, f)).logits[0] for f in (shown[1:], None, shown[:1])]
    assert_close(got, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone[0], alone[2], atol=1e-2)


def test_the_global_projection_adds_one_vector_to_every_prompt_of_every_layer(tiny, tiny_fingerprint):
    adapter = visual_adapter(tiny_fingerprint, GLOBAL)
    shown = features(1)
    vector = adapter.projection(shown, tiny, range(2))
    assert vector.shape == (1, 1, 1, 32)
    plain = random_adapter(tiny_fingerprint, prompt_length=LENGTH, prompt_norm=True)
    plain.gates.copy_(adapter.gates)
    plain.prompts.copy_(adapter.prompts + vector[0, 0, 0])
    for index, (prompts,) in plain(tiny).layers.items():
        assert_close(adapter(tiny, shown).layers[index][0].values, prompts.values)


@torch.no_grad()
def test_an_untrained_global_projection_adds_nothing_and_untrained_queries_leave_the_base(tiny, tiny_fingerprint):
    sizes = {"base": tiny_fingerprint, "insertion_layers": 2, "prompt_length": LENGTH}
    fresh = Adapter(AdapterConfig(**sizes, vision=GLOBAL))
    assert fresh.projection(features(), tiny, range(2)).abs().max() == 0
    fresh = Adapter(AdapterConfig(**sizes, vision=QUERIES))  # they add at once, and gates are zero
    assert fresh.projection(features(), tiny, range(2)).abs().max() > 0
    ids = torch.arange(10)[None].repeat(2, 1)
    assert torch.equal(tiny(input_ids=ids, prompt_kv=fresh(tiny, features())).logits, tiny(input_ids=ids).logits)


def test_a_layer_gets_what_the_base_has_there_of_the_names(tiny):
    projection = spell(LabelProjection(LABEL, 32, prompt_length=LENGTH))
    shown = VisualFeatures(torch.ones(1, 6), torch.tensor([[0.2, 0.28, 0.42, 0.1]]).log())
    assert_close(projection.posterior(shown)[0, :4], torch.tensor([0.2, 0.28, 0.42, 0.1]))
    got = projection(shown, tiny, range(1, 4))[0]
    assert got.shape == (3, LENGTH, 32)

    def states(*tokens):
        read = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: read.append(args[0])) for layer in tiny.model.layers
        ]
        tiny(input_ids=torch.tensor([[30, 31, *tokens]]))
        for hook in hooks:
            hook.remove()
        hidden = torch.stack(read[1:])[:, 0, 2:]  # what layers 1, 2 and 3 read
        return hidden / hidden.pow(2).mean(-1, keepdim=True).sqrt()

    # Name 2 leads, name 1 follows; but kind 0 holds names 0 and 1, together more than kind 1.
    assert_close(got[:, :2], states(8, 9))
    assert_close(got[:, 2:3], states(7) * (0.28 / 0.42))
    assert got[:, 3].abs().max() == 0  # behind the end of a short name
    assert_close(got[:, 4:6], states(20, 21) * 0.48)
    assert_close(got[:, 7:8], states(41))  # the fact's likelier word
    assert_close(got[:, 8:9], states(50))  # a likely name


@pytest.mark.parametrize(
    ("vision", "changes", "words"),
    [
        (LABEL, {"logits": None}, "encoder"),
        (QUERIES, {"tokens": None}, "of 7 numbers.*given none.*tokens=True"),
        (GLOBAL, {"levels": torch.ones(2, 7)}, "6 features.*not 7"),
    ],
)
def test_features_of_another_encoder_are_refused(tiny, tiny_fingerprint, vision, changes, words):
    with pytest.raises(LoadError, match=words):
        visual_adapter(tiny_fingerprint, vision)(tiny, replace(features(), **changes))


def test_a_text_adapter_refuses_a_picture(tiny, tiny_fingerprint):
    with pytest.raises(BadInput, match="reads text only"):
        random_adapter(tiny_fingerprint)(tiny, features())
