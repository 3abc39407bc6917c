"""Architectures of Hugging Face's transformers, from their configs with random weights: covered, trained, given back.

All of two layers of width 32 and a vocabulary of 128; a share that the report gives is compared with a count by hand.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    T = pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402

from altgrad.formats import get_format  # noqa: E402
from altgrad.nn import Policy, all_layers, dequantize_model, quantize_model, quantized_layers, report_of  # noqa: E402

E4M3, E5M2 = get_format("e4m3"), get_format("e5m2")
FULL = Policy(E4M3, E4M3, E5M2)
V, D, L, B, T_ = 128, 32, 2, 2, 8
SIZE = {"hidden_size": D, "intermediate_size": 64, "num_hidden_layers": L, "num_attention_heads": 4}
TEXT = {**SIZE, "vocab_size": V}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOKEN = torch.arange(B * T_).reshape(B, T_) % V
IMAGE = torch.linspace(-1, 1, B * 3 * 32 * 32).reshape(B, 3, 32, 32).sin()
WHISPER = {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": D,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 8, "max_target_positions": 16,
    "num_mel_bins": 8, "decoder_start_token_id": 1, "vocab_size": V,
}  # fmt: skip
T5 = {"num_layers": L, "d_model": D, "d_ff": 64, "d_kv": 8, "num_heads": 4, "vocab_size": V}
MOE = {"num_key_value_heads": 2, **TEXT}
IDS = {"input_ids": TOKEN}
ARCHITECTURES: dict[str, tuple[Callable[[], Any], dict[str, Tensor]]] = {
    "GPT-2": (
        lambda: T.GPT2LMHeadModel(T.GPT2Config(n_layer=L, n_embd=D, n_head=4, vocab_size=V, n_positions=16, **ENDS)),
        IDS,
    ),
    "Llama": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**MOE, **ENDS)), IDS),
    "Llama, tied": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**MOE, **ENDS, tie_word_embeddings=True)), IDS),
    "BERT": (lambda: T.BertForMaskedLM(T.BertConfig(**TEXT, max_position_embeddings=16)), IDS),
    "T5 encoder": (lambda: T.T5EncoderModel(T.T5Config(**T5)), IDS),
    "Mamba": (lambda: T.MambaForCausalLM(T.MambaConfig(hidden_size=D, num_hidden_layers=L, vocab_size=V)), IDS),
    "Mixtral": (lambda: T.MixtralForCausalLM(T.MixtralConfig(**MOE, **ENDS, num_local_experts=4)), IDS),
    "Qwen2-MoE": (
        lambda: T.Qwen2MoeForCausalLM(
            T.Qwen2MoeConfig(
                **MOE,
                moe_intermediate_size=32,
                shared_expert_intermediate_size=32,
                num_experts=4,
                num_experts_per_tok=2,
            )
        ),
        IDS,
    ),
    "GPT-OSS": (
        lambda: T.GptOssForCausalLM(
            T.GptOssConfig(
                **MOE, head_dim=8, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * L
            )
        ),
        IDS,
    ),
    "Falcon": (lambda: T.FalconForCausalLM(T.FalconConfig(**{**TEXT, "intermediate_size": None}, **ENDS)), IDS),
    "BLOOM": (lambda: T.BloomForCausalLM(T.BloomConfig(hidden_size=D, n_layer=L, n_head=4, vocab_size=V, **ENDS)), IDS),
    "LFM2": (
        lambda: T.Lfm2ForCausalLM(T.Lfm2Config(**MOE, **ENDS, layer_types=["conv", "full_attention"])),
        IDS,
    ),
    "ViT": (
        lambda: T.ViTForImageClassification(
            T.ViTConfig(**SIZE, image_size=32, patch_size=8)
        ),
        {"pixel_values": IMAGE},
    ),
    "Whisper": (
        lambda: T.WhisperForConditionalGeneration(T.WhisperConfig(**WHISPER, **ENDS)),
        {"input_features": IMAGE[:, 0, :8, :16], "decoder_input_ids": TOKEN},
    ),
    "ResNet": (
        lambda: T.ResNetForImageClassification(
            T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        {"pixel_values": IMAGE},
    ),
    "ConvNeXt": (
        lambda: T.ConvNextForImageClassification(T.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        {"pixel_values": IMAGE},
    ),
    "Swin": (
        lambda: T.SwinForImageClassification(
            T.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
        ),
        {"pixel_values": IMAGE},
    ),
}  # fmt: skip
ADDED = {
    "Mamba": {"A_log"},
    "GPT-OSS": {"gate_up_proj_bias", "down_proj_bias"},
    "ViT": {"cls_token", "position_embeddings"},
    "Swin": {"relative_position_bias_table"},
}
"""The last parts of the names of matrices that are no factors of a product, by architecture."""
REFUSED = {"Mamba": "A_log", "ViT": "position_embeddings", "Swin": "relative_position_bias_table"}
"""Those of them that `strict` wants named: no biases, and more than a vector."""
DIRECT = ("Mamba", "LFM2")
"""Those that read the weights of their layers directly."""
OTHER = {
    "Mamba": {"conv1d", "in_proj", "x_proj", "dt_proj", "out_proj", "A_log"},
    "LFM2": {"conv", "in_proj", "out_proj"},
    "Whisper": {"conv2"},
    "ResNet": {"convolution"},
    "ConvNeXt": {"dwconv", "pwconv1", "pwconv2", "downsampling_layer.1"},
    "Swin": {"reduction"},
}
"""The last parts of the names of layers that are none of attention, MLP, embedding and head."""


def counted(model: nn.Module, given: dict[str, Tensor]) -> int:
    """Multiply-adds of a forward pass, of the layers that ran: outputs times what each sums over."""
    total = 0

    def hook(module: Any, args: Any, output: Any) -> None:
        nonlocal total
        if isinstance(module, nn.modules.conv._ConvNd):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            total += output.numel() * (module.weight.numel() // output.shape[-1])
        elif type(module).__name__.endswith("Router") and hasattr(module, "weight"):
            total += args[0].numel() * len(module.weight)
        elif type(module).__name__.endswith("Experts"):
            up, down = module.gate_up_proj[0].numel(), module.down_proj[0].numel()
            total += args[1].numel() * (up + down)

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    with torch.no_grad():
        model(**given)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_covered_trains_and_is_given_back(name: str) -> None:
    torch.manual_seed(0)
    build, given = ARCHITECTURES[name]
    model = build().eval()
    with torch.no_grad():
        before = model(**given)[0]
    if name not in DIRECT:
        expected = counted(model, given)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(each, type(module), vars(module).keys()) for each, module in model.named_modules()]

    policy: Any = FULL
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"strict: .* name them: .\"[\w.*]+{REFUSED[name]}\": Policy"):
            quantize_model(model, FULL, strict=True)(**given)
        policy = {f"*{REFUSED[name]}": Policy(), "*": FULL}
    quantize_model(model, policy, strict=True)
    others = {each for each, layer in quantized_layers(model).items() if layer.layer_type == "other"}
    ends = tuple(f".{each}" for each in OTHER.get(name, ()))
    assert others == {each for each in quantized_layers(model) if each.endswith(ends) and "attn" not in each}
    with torch.no_grad():
        assert not torch.equal(model(**given)[0], before), "evaluation is quantized"
    report = report_of(model)
    matrices = {
        each: parameter.numel()
        for each, parameter in model.named_parameters()
        if parameter.ndim > 1 and each.rpartition(".")[2] not in ADDED.get(name, ())
    }
    assert {row.name for row in report.rows if row.quantized} == matrices.keys()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert report.parameter_share == sum(matrices.values()) / total
    of_weights = [each for each in report.products or () if each.parameters]
    assert all(each.casts for each in of_weights)
    if name not in DIRECT:
        assert sum(each.multiply_adds for each in of_weights) == expected
    elif name == "Mamba":
        assert {row.multiply_adds for row in report.rows if row.name.endswith("dt_proj.weight")} == {B * T_ * 64 * 2}

    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(4):
        loss = (model(**given)[0].float() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    dequantize_model(model)
    assert [(each, type(module), vars(module).keys()) for each, module in model.named_modules()] == modules
    model.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model.eval()(**given)[0], before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_head_that_only_the_model_calls_so_stays_wide_with_the_embedding_that_it_is_tied_to() -> None:
    config = T.DistilBertConfig(vocab_size=V, dim=D, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=16)
    model = quantize_model(T.DistilBertForMaskedLM(config), "mxfp8")
    assert quantized_layers(model)["vocab_projector"].layer_type == "head"
    assert model(**IDS).logits.shape == (B, T_, V)
    (table,) = [row for row in report_of(model).skipped if row.name.endswith("word_embeddings.weight")]
    assert (table.of_them_rounded, table.multiply_adds) == (0, B * T_ * D * V)


def test_the_products_of_attention_are_rounded_by_choice() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["Llama"][0]()
    quantize_model(model, Policy(E4M3, E4M3, E5M2, attention=E4M3, head=False, embedding=False))
    assert set(all_layers(model)) - set(quantized_layers(model)) == {
        f"model.layers.{layer}.self_attn.{name}" for layer in range(L) for name in ("scores", "mixing")
    }
    model(**IDS)[0].sum().backward()
    report = report_of(model)
    of_attention = sum(each.multiply_adds for each in report.products or () if not each.parameters and each.casts)
    assert of_attention == L * B * T_ * T_ * D * 2
    assert {row.name: row.why for row in report.skipped}["lm_head.weight"] == "head=False"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_quantized_llama_generates_is_saved_and_is_one_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = quantize_model(ARCHITECTURES["Llama"][0]().eval(), FULL)
    with torch.no_grad():
        expected = TOKEN[:1]
        for _ in range(3):
            expected = torch.cat([expected, model(expected, use_cache=False)[0][:, -1:].argmax(-1)], 1)
        found = model.generate(TOKEN[:1], max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=False)
        graph = torch.compile(lambda token: model(token, use_cache=False)[0], backend="eager", fullgraph=True)
        assert torch.equal(graph(TOKEN), model(TOKEN, use_cache=False)[0])
    assert torch.equal(found, expected)
    model.save_pretrained(tmp_path)
    again = T.LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
