"""Every configuration that passes its check makes an adapter that runs, beside another one in the same batch."""

import json
from dataclasses import replace

import pytest
import torch

from adapter.errors import LoadError
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.checkpoint import load_adapter, save_adapter
from adapter.method.config import (
    GATE_ACTIVATIONS,
    KIND_LENGTH,
    MAX_BLOCKS,
    MAX_FORM_BYTES,
    TEMPLATES,
    AdapterConfig,
    TuningConfig,
    VisionConfig,
)
from adapter.method.vision import VisualFeatures
from tests.tiny_models import FINGERPRINT, random_adapter

LABEL = VisionConfig(
    encoder="any", projection="label", feature_size=6, hidden=5, num_classes=6, num_kinds=2, name_length=2,
    name_states=True, num_facts=2, fact_size=3, certainty=True,
)  # fmt: skip
QUERIES = VisionConfig(encoder="any", projection="queries", token_size=7, width=12, blocks=2, heads=3)
TUNING = TuningConfig(intermediate_size=64, norms=True, bias=True, scale=True, lora_rank=3)
# The smallest values of each, alone and together, and the largest where there is a limit.
RUNS = [
    *({"prompt_length": length} for length in (1, 500)),
    *({"insertion_layers": layers} for layers in (1, 4)),
    *({"gate_activation": activation} for activation in GATE_ACTIVATIONS),
    *({"template": template} for template in TEMPLATES),
    {"form": 'start: "{" MESSAGE_WORDS "}"'},
    *({"vision": replace(LABEL, **{name: 1})} for name in ("feature_size", "hidden", "num_kinds", "name_length")),
    {"vision": replace(LABEL, num_classes=2, num_kinds=1, name_length=1), "prompt_length": 2 + KIND_LENGTH + 4},
    *({"vision": replace(QUERIES, **{name: 1})} for name in ("token_size", "blocks", "heads")),
    {"vision": replace(QUERIES, token_size=1, width=1, blocks=1, heads=1), "prompt_length": 1},
    {"vision": replace(QUERIES, blocks=MAX_BLOCKS)},
    *({"tuning": TuningConfig(64, lora_rank=rank)} for rank in (1, 200)),
    {"tuning": TUNING, "vision": QUERIES},
]
REFUSED = [
    ({"prompt_length": 0}, "prompt_length: .* greater than or equal to 1, got 0"),
    ({"prompt_length": 1025}, "prompt_length: .* less than or equal to 1024, got 1025"),
    ({"insertion_layers": 5}, "at most the base's 4, got 5"),
    ({"gate_activation": "relu"}, "gate_activation: Input should be 'tanh' or 'identity', got 'relu'"),
    ({"form": "x" * (MAX_FORM_BYTES + 1)}, f"form must be null, or have at most {MAX_FORM_BYTES} bytes"),
    ({"format_version": 2}, "format_version: Input should be 1, got 2"),
    ({"vision": LABEL, "prompt_length": 7 + KIND_LENGTH}, "prompt_length must be more than 10 .* got 10"),
]
REFUSED_PARTS = [
    *((LABEL, name, 0, f"{name} must be at least 1") for name in ("feature_size", "hidden")),
    (LABEL, "num_facts", -1, "num_facts: .* greater than or equal to 0"),
    (LABEL, "fact_size", 0, "fact_size must be at least 1"),
    *((LABEL, name, "x" * (MAX_FORM_BYTES + 1), f"{name}: .* at most") for name in ("looks", "beyond")),
    *((LABEL, name, False, "name_states and certainty must be true") for name in ("name_states", "certainty")),
    (LABEL, "num_classes", 1, "num_classes must be at least 2, got 1"),
    *((LABEL, name, 2**16, f"{name} must be at most") for name in ("num_classes", "name_length", "num_facts")),
    *((QUERIES, name, -1, f"{name} must be at least 1") for name in ("token_size", "width", "blocks", "heads")),
    (QUERIES, "width", 13, "multiple of heads 3, got 13"),
    (QUERIES, "channels", "GRB", "channels: Input should be 'RGB' or 'BGR', got 'GRB'"),
    (QUERIES, "blocks", MAX_BLOCKS + 1, f"at most {MAX_BLOCKS}"),
    (TUNING, "lora_rank", -1, "lora_rank: .* greater than or equal to 0"),
    (TuningConfig(64, norms=True), "norms", False, "must change something"),
]


def features_for(vision: VisionConfig | None) -> VisualFeatures | None:
    if vision is None:
        return None
    classes = max(vision.num_classes, 1)
    return VisualFeatures(
        torch.randn(1, max(vision.feature_size, 1)), torch.randn(1, classes), torch.randn(1, 4, vision.token_size)
    )


@pytest.mark.parametrize("changes", RUNS)
@torch.no_grad()
def test_a_configuration_that_passes_runs(changes, tiny, tmp_path):
    config = AdapterConfig(**{"base": FINGERPRINT, "prompt_length": 12, "insertion_layers": 3, **changes})
    assert AdapterConfig.from_json(config.to_json(), "it") == config
    torch.manual_seed(0)
    adapter = Adapter(config)
    torch.nn.init.constant_(adapter.gates, 0.5)
    save_adapter(adapter, tmp_path / "it")
    loaded = load_adapter(tmp_path / "it", FINGERPRINT)
    shown = features_for(config.vision)
    kv = PromptKV.stack([loaded(tiny, shown), random_adapter(FINGERPRINT, tuning=TUNING)(tiny)], 16)
    ids = torch.arange(10)[None].repeat(2, 1)
    logits = tiny(input_ids=ids, prompt_kv=kv, prompt_rows=torch.tensor([0, 1])).logits
    assert logits.isfinite().all()
    alone = tiny(input_ids=ids[:1], prompt_kv=loaded(tiny, shown)).logits[0]
    torch.testing.assert_close(logits[0], alone, rtol=1e-4, atol=1e-4)


def test_a_config_without_the_fields_that_came_later_is_read():
    config = AdapterConfig(
        base=FINGERPRINT, insertion_layers=2, vision=VisionConfig(encoder="any", feature_size=1)
    )
    data = json.loads(config.to_json())
    for later in ("channels", "token_size", "width", "blocks", "heads", "name_states", "num_facts", "certainty"):
        del data["vision"][later]
    assert AdapterConfig.from_json(json.dumps(data), "old") == config


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_a_wrong_configuration_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        AdapterConfig(**{"base": FINGERPRINT, "prompt_length": 12, "insertion_layers": 3, **changes})


@pytest.mark.parametrize(("part", "name", "value", "words"), REFUSED_PARTS)
def test_a_wrong_part_is_refused_by_name(part, name, value, words):
    with pytest.raises(ValueError, match=words):
        replace(part, **{name: value})


def test_deltas_for_mlps_of_another_size_never_reach_a_batch(tiny):
    """With a size of 1 they are broadcast and the adapter answers alone, but another one beside it could not."""
    adapter = random_adapter(FINGERPRINT, tuning=TuningConfig(intermediate_size=1, bias=True))
    with pytest.raises(LoadError, match="intermediate_size 1, and this one has 64. Use it with tiny"):
        adapter(tiny)


@pytest.mark.parametrize(("table", "value"), [("name_of", 6), ("names", 97), ("kind_of", 2)])
def test_a_table_that_points_outside_is_refused(table, value, tmp_path):
    adapter = random_adapter(FINGERPRINT, vision=LABEL, prompt_length=12)
    save_adapter(adapter, tmp_path / "right")
    load_adapter(tmp_path / "right")
    adapter.projection.get_buffer(table).view(-1)[1] = value
    save_adapter(adapter, tmp_path / "wrong")
    with pytest.raises(LoadError, match=f"projection.{table} holds numbers that are out of range"):
        load_adapter(tmp_path / "wrong")
