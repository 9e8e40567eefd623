"""Official V2 against its equations in fp64, with Meta's order of rows."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from adapter.errors import LoadError
from adapter.formats.convert import Options, convert
from adapter.formats.official_v2 import read
from adapter.method.checkpoint import load_adapter, save_adapter
from adapter.method.vision import VisualFeatures
from tests.reference_llama import HEADS, HIDDEN, IDS, LAYERS, meta_weights, reference_logits, rotate_pairs
from tests.tiny_models import random_llama, save_base

K, L, RANK, TOKENS, WIDTH = 3, 3, 2, 12, 16
LINEARS = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


@pytest.fixture(scope="module")
def multi_head(tiny_fingerprint):
    """A tiny LLaMA with a key head for every head, as the released 7B; its weights in Meta's order."""
    model = random_llama(seed=3, random_norms=True, num_key_value_heads=HEADS).double()
    base = dataclasses.replace(tiny_fingerprint, num_key_value_heads=HEADS)
    return model, base, meta_weights(model, in_pairs=True)


def random_v2(weights, lora: bool, images: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """A file's tensors by their published names and shapes."""
    torch.manual_seed(seed)
    found = {"adapter_query.weight": torch.randn(L * K, HIDDEN)}
    if images:
        found |= {"visual_query.weight": torch.randn(K, WIDTH)}
        for name, module in visual_modules().items():
            found |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for i in range(LAYERS):
        if i >= LAYERS - L:
            found[f"llama.layers.{i}.attention.gate"] = torch.randn(1, HEADS, 1, 1)
            if lora:
                found[f"llama.layers.{i}.attention.new_gate"] = 1 + torch.randn(1, 1, 1, 1)
        for norm in ("attention_norm", "ffn_norm"):
            found[f"llama.layers.{i}.{norm}.weight"] = torch.rand(HIDDEN) + 0.5
        for name in LINEARS:
            found[f"llama.layers.{i}.{name}.bias"] = 0.2 * torch.randn(len(weights[f"layers.{i}.{name}.weight"]))
        for name in (*LINEARS, "attention.wk", "attention.wv") if lora else ():
            outputs, inputs = weights[f"layers.{i}.{name}.weight"].shape
            part, linear = name.split(".")
            found[f"llama.layers.{i}.{part}.lora_{linear}_l1.weight"] = 0.3 * torch.randn(RANK, inputs)
            found[f"llama.layers.{i}.{part}.lora_{linear}_l2.weight"] = 0.3 * torch.randn(outputs, RANK)
    found["llama.norm.weight"] = torch.rand(HIDDEN) + 0.5
    return found


def visual_modules() -> dict[str, nn.Module]:
    from timm.models.vision_transformer import Block

    blocks = [Block(WIDTH, 2, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(2)]
    return {
        "clip_proj": nn.Linear(TOKENS, WIDTH),
        "clip_proj_norm": nn.LayerNorm(WIDTH),
        "visual_blocks": nn.Sequential(*blocks),
        "visual_proj": nn.Linear(WIDTH, HIDDEN),
        "visual_proj_norm": nn.LayerNorm(HIDDEN),
    }


def visual_vectors(tensors, tokens):
    """[B, K, hidden] of CLIP's tokens [B, N, TOKENS], in fp64."""
    modules = {name: module.double() for name, module in visual_modules().items()}
    for name, module in modules.items():
        module.load_state_dict(
            {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        )
    x = modules["clip_proj_norm"](modules["clip_proj"](tokens))
    queries = tensors["visual_query.weight"].double().expand(len(tokens), -1, -1)
    x = modules["visual_blocks"](torch.cat([queries, x], 1))[:, :K]
    return modules["visual_proj_norm"](modules["visual_proj"](x))


def reference(weights, tensors, visual=None):
    """Logits [B, T, vocabulary]: LLaMA in Meta's convention with V2's changes, in fp64."""
    given = {name.removeprefix("llama."): values.double() for name, values in tensors.items()}
    changed = {name: given.get(name, values) for name, values in weights.items()}  # norms
    for name in weights:
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if (down := given.get(f"{layer}.lora_{part}_l1.weight")) is not None:
            changed[name] = weights[name] + given[f"{layer}.lora_{part}_l2.weight"] @ down
    prompts, gates = {}, {}
    for place, i in enumerate(range(LAYERS - L, LAYERS)):
        own = given["adapter_query.weight"].view(L, K, HIDDEN)[place]
        prompts[i] = own if visual is None else own + visual
        name = f"layers.{i}.attention"
        gates[i] = given[f"{name}.gate"].tanh().flatten() * given.get(f"{name}.new_gate", torch.ones(1)).flatten()
    # LoRA is not applied to the prompts' keys and values.
    return reference_logits(changed, IDS, prompts, gates, rotate_pairs, biases=given, of_prompts=weights)


def converted(multi_head, tensors, tmp_path):
    model, base, _ = multi_head
    adapter = read(tmp_path / "v2.pth", tensors, base, 64, lambda name: model.state_dict()[name], heads=2)
    save_adapter(adapter, tmp_path / "ours")
    return load_adapter(tmp_path / "ours", base).double()


@pytest.mark.parametrize("lora", [False, True], ids=["bias", "lora-bias"])
@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_the_converted_adapter_gives_the_reference_logits(multi_head, tmp_path, lora, images):
    model, _, weights = multi_head
    tensors = random_v2(weights, lora, images)
    adapter = converted(multi_head, tensors, tmp_path)
    visual, features = None, None
    if images:
        tokens = torch.randn(2, 5, TOKENS, dtype=torch.double)
        visual, features = visual_vectors(tensors, tokens), VisualFeatures(torch.zeros(2, 1), None, tokens)
        vision = adapter.config.vision
        assert (vision.channels, vision.projected, vision.blocks) == ("BGR", True, 2)
        assert vision.encoder.endswith("openai")
    ours = model(input_ids=IDS, use_cache=False, prompt_kv=adapter(model, features)).logits
    torch.testing.assert_close(ours, reference(weights, tensors, visual), rtol=1e-5, atol=1e-5)


def test_a_layer_whose_gate_never_moved_has_no_prompts(multi_head, tmp_path):
    tensors = random_v2(multi_head[2], lora=False, images=False)
    tensors["llama.layers.0.attention.gate"] = torch.zeros(1, HEADS, 1, 1)
    tensors["adapter_query.weight"] = torch.randn(12, HIDDEN)  # in all four layers, or in three
    config = converted(multi_head, tensors, tmp_path).config
    assert (config.insertion_layers, config.prompt_length) == (3, 4)


def test_a_published_file_is_converted(multi_head, tmp_path):
    model, _, weights = multi_head
    save_base(copy.deepcopy(model).float(), tmp_path / "base")
    tensors = random_v2(weights, lora=True, images=False)
    torch.save({"model": tensors, "config": {"w_bias": True, "w_lora": True}}, tmp_path / "v2.pth")
    convert(str(tmp_path / "v2.pth"), tmp_path / "ours", Options(base=str(tmp_path / "base")))
    ours = model(input_ids=IDS, use_cache=False, prompt_kv=load_adapter(tmp_path / "ours").double()(model)).logits
    torch.testing.assert_close(ours, reference(weights, tensors), rtol=1e-5, atol=1e-5)
    wrong = {name: torch.zeros(5) if "gate" in name else tensor for name, tensor in tensors.items()}
    torch.save({"model": wrong}, tmp_path / "v2.pth")
    with pytest.raises(LoadError, match="do not fit together"):
        convert(str(tmp_path / "v2.pth"), tmp_path / "theirs", Options(base=str(tmp_path / "base")))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("adapter_query.weight"), "lacks adapter_query.weight"),
        (lambda t: t.update({"llama.layers.1.attention.wq.bias": torch.zeros(5)}), "bias.q has shape (5,)"),
        (lambda t: t.update({"layers.99.attention.wq.bias": torch.zeros(HIDDEN)}), "not there at all"),
        (lambda t: t.update({"strange": torch.zeros(1)}), "strange is no part"),
        (lambda t: t.update({"norm.weight": torch.ones(HIDDEN)}), "tensors twice"),
        (lambda t: t.update({"llama.norm.weight": torch.ones(1)}), "norm.weight has shape (1,), not"),
        (lambda t: t.update({"llama.layers.2.attention.new_gate": torch.ones(1)}), "have a new_gate, and others"),
        (lambda t: t.pop("llama.layers.0.attention.wq.bias"), "layer 0 lacks layers.*.attention.wq.bias"),
        (
            lambda t: t.update({"llama.layers.2.attention.lora_wq_l1.weight": torch.ones(2, HIDDEN)}),
            "layer 2: attention.wq has one half of its LoRA only",
        ),
        (lambda t: t.update({"adapter_query.weight": torch.zeros(7, HIDDEN)}), "cannot be shared out"),
        (lambda t: t.update({"visual_query.weight": torch.zeros(4, WIDTH)}), "4 visual queries"),
    ],
)
def test_a_broken_file_is_refused(multi_head, tmp_path, change, message):
    tensors = random_v2(multi_head[2], False, True)
    change(tensors)
    with pytest.raises(LoadError) as error:
        converted(multi_head, tensors, tmp_path)
    assert message in str(error.value)
