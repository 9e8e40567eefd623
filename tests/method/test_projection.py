"""From features to prompts: what the projections compute, on the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from adapter.errors import BadInput, LoadError
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.checkpoint import load_adapter, save_adapter
from adapter.method.config import AdapterConfig, VisionConfig
from adapter.method.label_projection import CONCEPT_RANK, KIND_LENGTH, LabelProjection
from adapter.method.projection import QueryProjection
from adapter.method.vision import VisualFeatures
from tests.tiny_models import random_adapter

GLOBAL = VisionConfig(encoder="any", feature_size=6, hidden=5)
LABEL = replace(GLOBAL, projection="label", num_classes=6, num_kinds=2, name_length=2)
STATES = replace(LABEL, name_states=True, num_facts=1, fact_size=3)
QUERIES = VisionConfig(encoder="any", projection="queries", token_size=7, width=12, blocks=2, heads=3)
LENGTH = 4 + KIND_LENGTH + 2  # two names, a kind and two free prompts, one of them a fact's in STATES


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
    if projection.states:
        projection.lead[:2] = torch.tensor([30, 31])
        projection.facts[0, :2] = torch.tensor([40, 41])
        projection.fact_weight[0, 1, 2] = 1.0
    return projection


def visual_adapter(fingerprint, vision):
    adapter = random_adapter(fingerprint, vision=vision, prompt_length=LENGTH, prompt_norm=True)
    for p in adapter.projection.parameters():
        torch.nn.init.normal_(p, std=0.3)
    if vision.projection == "label":
        spell(adapter.projection)
    return adapter


@pytest.mark.parametrize("vision", [GLOBAL, LABEL, STATES, QUERIES])
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


@pytest.mark.parametrize("vision", [GLOBAL, LABEL, STATES, QUERIES])
def test_save_then_load_is_the_identity(tiny, tiny_fingerprint, vision, tmp_path):
    adapter = visual_adapter(tiny_fingerprint, vision)
    save_adapter(adapter, tmp_path / "see")
    loaded = load_adapter(tmp_path / "see")
    shown = features()
    for index, (prompts,) in adapter(tiny, shown).layers.items():
        assert torch.equal(prompts.keys, loaded(tiny, shown).layers[index][0].keys)


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


def test_an_untrained_global_projection_adds_nothing(tiny, tiny_fingerprint):
    fresh = Adapter(AdapterConfig(base=tiny_fingerprint, insertion_layers=2, prompt_length=LENGTH, vision=GLOBAL))
    assert fresh.projection(features(), tiny, range(2)).abs().max() == 0


def test_the_label_projection_spells_its_candidates(tiny):
    projection = spell(LabelProjection(LABEL, 32, prompt_length=LENGTH))
    logits = torch.tensor([[0.2, 0.3, 0.4, 0.1]]).log()
    shown = VisualFeatures(torch.randn(1, 6), logits)
    assert_close(projection.posterior(shown)[0, :4], torch.tensor([0.2, 0.3, 0.4, 0.1]))
    embedding = tiny.get_input_embeddings().weight
    got = projection(shown, tiny, range(2))[0, 0]
    assert got.shape == (LENGTH, 32)

    def unit(token):
        return embedding[token] / embedding[token].pow(2).mean().sqrt()

    # Name 2 leads, name 1 follows; but kind 0 holds names 0 and 1, together more than kind 1.
    assert_close(got[0], unit(8))
    assert_close(got[1], unit(9))
    assert_close(got[2], unit(7) * 0.75)
    assert got[3].abs().max() == 0  # behind the end of a short name
    assert_close(got[4], unit(20) * 0.5)
    torch.nn.init.eye_(projection.before.weight)
    assert_close(projection(shown, tiny, range(2))[0, 0, 1], unit(9) + unit(8))  # the token before is told along


def test_with_name_states_a_layer_gets_what_the_base_has_there_of_the_name(tiny):
    projection = spell(LabelProjection(STATES, 32, prompt_length=LENGTH))
    shown = VisualFeatures(torch.ones(1, 6), torch.tensor([[0.2, 0.3, 0.4, 0.1]]).log())
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

    assert_close(got[:, :2], states(8, 9))
    assert_close(got[:, 2:3], states(7) * 0.75)
    assert got[:, 3].abs().max() == 0  # behind the end of a short name
    assert_close(got[:, 4:6], states(20, 21) * 0.5)
    assert_close(got[:, 7:8], states(41))  # the fact's likelier word


def test_a_fact_is_the_word_that_its_head_prefers():
    projection = spell(LabelProjection(STATES, 32, prompt_length=LENGTH))
    levels = torch.zeros(2, 6)
    levels[0, 2], levels[1, 2] = 1.0, -1.0
    assert projection.fact_words(VisualFeatures(levels)).tolist() == [[41], [40]]
    projection.fact_bias[0, 2] = 9.0  # of a word that is not there
    assert projection.fact_words(VisualFeatures(levels)).tolist() == [[41], [40]]


@torch.no_grad()
def test_a_word_says_how_sure_the_names_are(tiny):
    """A likely name, a likely kind of several names, and neither."""
    projection = spell(LabelProjection(replace(STATES, certainty=True), tiny.config.hidden_size, LENGTH + 1))
    projection.certainty_words.copy_(torch.tensor([50, 51, 52]))
    projection.certainty_bounds.copy_(torch.tensor([0.4, 0.35]))
    logits = torch.tensor([[9.0, 0, 0, 0], [1.3, 1.2, 0, 1], [-0.6, -0.6, 0.2, 0.2]])
    shown = VisualFeatures(torch.zeros(3, 6), logits)
    place = 4 + KIND_LENGTH + 1  # behind the fact
    prompts = projection(shown, tiny, (0, 1))
    expected = projection._states(torch.tensor([[50], [51], [52]]), tiny, (0, 1))
    assert_close(prompts[:, :, place] - projection.end, expected[:, :, 0])


def test_concepts_share_a_softmax_with_the_encoders_classes():
    projection = spell(LabelProjection(LABEL, 32, prompt_length=LENGTH))
    projection.concept_basis[0, 3] = 1.0
    projection.concept_weight[5, 0] = 10.0
    projection.concept_bias[5] = 0.0
    levels = torch.zeros(2, 6)
    levels[1, 3] = 2.0
    posterior = projection.posterior(VisualFeatures(levels, torch.zeros(2, 4)))
    assert_close(posterior.sum(1), torch.ones(2))
    assert posterior[0].argmax() != 5 and posterior[1, 5] > 0.99
    assert projection.concept_basis.shape == (CONCEPT_RANK, 6)


def test_names_shared_by_classes_add_up():
    projection = spell(LabelProjection(LABEL, 32, prompt_length=LENGTH))
    projection.name_of.copy_(torch.tensor([0, 0, 2, 3, 4, 5]))
    posterior = projection.posterior(VisualFeatures(torch.zeros(1, 6), torch.tensor([[0.2, 0.3, 0.4, 0.1]]).log()))
    assert_close(posterior[0, :3], torch.tensor([0.5, 0.0, 0.4]))


def test_features_of_another_encoder_are_refused(tiny):
    projection = LabelProjection(LABEL, 32, prompt_length=LENGTH)
    for logits in (None, torch.zeros(1, 7)):
        with pytest.raises(LoadError, match="encoder"):
            projection(VisualFeatures(torch.zeros(1, 6), logits), tiny, range(2))


def test_a_text_adapter_refuses_a_picture(tiny, tiny_fingerprint):
    with pytest.raises(BadInput, match="reads text only"):
        random_adapter(tiny_fingerprint)(tiny, features())


def test_too_short_prompts_for_a_label_projection_are_refused(tiny_fingerprint):
    with pytest.raises(ValueError, match=f"more than {LENGTH - 2}.*got 6"):
        Adapter(AdapterConfig(base=tiny_fingerprint, insertion_layers=2, prompt_length=6, vision=LABEL))


@torch.no_grad()
def test_zero_gates_with_visual_queries_are_the_base(tiny, tiny_fingerprint):
    fresh = Adapter(AdapterConfig(base=tiny_fingerprint, insertion_layers=2, prompt_length=LENGTH, vision=QUERIES))
    ids = torch.arange(10)[None].repeat(2, 1)
    kv = fresh(tiny, features())
    assert torch.equal(tiny(input_ids=ids, prompt_kv=kv).logits, tiny(input_ids=ids).logits)


def test_queries_differ_and_the_order_of_tokens_does_not_matter(tiny):
    projection = QueryProjection(QUERIES, 32, prompt_length=LENGTH)
    shown = features()
    added = projection(shown, tiny, range(2))[:, 0]
    assert added.shape == (2, LENGTH, 32)
    assert_close(added.pow(2).mean(2), torch.ones(2, LENGTH), rtol=1e-2, atol=0)  # as large as prompts are
    assert (added[:, 1:] - added[:, :1]).abs().amax(2).min() > 1e-2
    turned = replace(shown, tokens=shown.tokens.flip(1))
    assert_close(projection(turned, tiny, range(2))[:, 0], added, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_the_query_projection_gets_a_gradient_from_step_two(tiny, tiny_fingerprint):
    torch.manual_seed(0)
    adapter = Adapter(
        AdapterConfig(base=tiny_fingerprint, insertion_layers=2, prompt_length=LENGTH, vision=QUERIES)
    )
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    ids = torch.arange(10)[None].repeat(2, 1)
    for _ in range(2):
        optimizer.zero_grad()
        tiny(input_ids=ids, prompt_kv=adapter(tiny, features()), labels=ids).loss.backward()
        optimizer.step()
    still = {n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert not still
    assert all(p.grad is None for p in tiny.parameters())


def test_names_and_shapes_are_those_of_the_v2_release():
    config = VisionConfig(encoder="any", projection="queries", token_size=1024, width=768, blocks=8, heads=16)
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in QueryProjection(config, 4096, 10).state_dict().items()}
    assert shapes["visual_query.weight"] == (10, 768)
    assert shapes["clip_proj.weight"] == (768, 1024) and shapes["clip_proj_norm.bias"] == (768,)
    assert shapes["visual_blocks.7.attn.qkv.weight"] == (2304, 768)
    assert shapes["visual_blocks.0.attn.qkv.bias"] == (2304,) and shapes["visual_blocks.0.mlp.fc1.weight"] == (
        3072,
        768,
    )
    assert shapes["visual_proj.weight"] == (4096, 768) and shapes["visual_proj_norm.weight"] == (4096,)
    assert len(shapes) == 1 + 4 + 8 * 12 + 4
    assert {m.eps for m in QueryProjection(QUERIES, 32, 5).modules() if isinstance(m, torch.nn.LayerNorm)} == {
        1e-5
    }


def test_queries_without_tokens_or_with_another_encoders_are_refused(tiny, tiny_fingerprint):
    adapter = visual_adapter(tiny_fingerprint, QUERIES)
    for tokens, words in ((None, "given none"), (torch.zeros(2, 9, 8), "given tokens of 8")):
        with pytest.raises(LoadError, match=f"of 7 numbers.*{words}.*tokens=True"):
            adapter(tiny, replace(features(), tokens=tokens))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"token_size": 0}, "token_size must be a whole number"),
        ({"blocks": 0}, "blocks must be a whole number"),
        ({"width": 16}, "multiple of heads 3, got 16"),
        ({"channels": "GRB"}, "vision.channels must be one of RGB, BGR"),
        ({"projection": "query"}, "vision.projection must be one of global, label, queries"),
    ],
)
def test_a_wrong_vision_setting_is_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=words):
        replace(QUERIES, **wrong)


def test_a_config_without_the_fields_that_came_later_is_read(tiny_fingerprint):
    config = AdapterConfig(base=tiny_fingerprint, insertion_layers=2, vision=GLOBAL)
    data = json.loads(config.to_json())
    for new in (
        "channels",
        "token_size",
        "width",
        "blocks",
        "heads",
        "name_states",
        "num_facts",
        "fact_size",
        "certainty",
    ):
        del data["vision"][new]
    assert AdapterConfig.from_json(json.dumps(data), "old") == config
