"""What a layer is for, read off its name as the usual model families give them, else off its class."""

from __future__ import annotations

import re

from torch import nn

from altgrad.config import LAYER_TYPES

_ATTENTION = """self_attn self_attention selfattention encdecattention attn cross_attn crossattention cross_attention
    encoder_attn multihead_attn attention_layer q_proj k_proj v_proj o_proj qkv_proj c_attn query key value
    query_key_value qkv to_q to_k to_v to_out wq wk wv wo Wqkv"""
_MLP = """feed_forward feedforward ffn densereludense block_sparse_moe moe experts expert shared_expert intermediate
    output.dense fc1 fc2 linear1 linear2 up_proj gate_proj down_proj gate_up_proj c_fc w1 w2 w3 dense_h_to_4h
    dense_4h_to_h wi wi_0 wi_1"""
_EMBEDDING = """embeddings embed_tokens embed_positions tok_embeddings token_embedding position_embedding
    word_embeddings wte wpe shared patch_embed"""
_HEAD = "lm_head embed_out output_projection classifier score cls qa_outputs proj_out"
_NAMES = {
    name.lower(): kind
    for kind, names in (("attention", _ATTENTION), ("mlp", _MLP), ("embedding", _EMBEDDING), ("head", _HEAD))
    for name in names.split()
}
_OF_ATTENTION = (nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear)
"""The module, and what is its ``out_proj``."""
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|quantized)(?:\.|$)")


def layer_type(name: str) -> str | None:
    """The type of the layer called `name`: that of the first part, or two, of the dotted name that tell one, or None.

    A part that is called like a type (attention, mlp, embedding, head) goes before those that families use for one,
    such as ``self_attn``, ``c_fc``, ``embed_tokens`` and ``lm_head``.
    """
    parts = name.split(".")
    exact = next((part for part in parts if part in LAYER_TYPES), None)
    told = (".".join(parts[at : at + size]).lower() for at in range(len(parts)) for size in (1, 2))
    return exact or next((_NAMES[each] for each in told if each in _NAMES), None)


def type_of(name: str, module: nn.Module) -> str | None:
    """`layer_type`, else what the class tells: a table is an embedding, nn.MultiheadAttention is attention."""
    if isinstance(module, nn.Embedding):
        return next((part for part in name.split(".") if part in LAYER_TYPES), "embedding")
    found = layer_type(name)
    return "attention" if found is None and isinstance(module, _OF_ATTENTION) else found


def ends_of(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> "embedding" or "head", where the model says so itself, as those of Hugging Face's transformers do."""
    found: dict[nn.Module, str] = {}
    for method, kind in (("get_input_embeddings", "embedding"), ("get_output_embeddings", "head")):
        for module in model.modules():
            try:
                end = getattr(module, method, lambda: None)()
            except (AttributeError, NotImplementedError):  # transformers, of a model that has none
                continue
            found |= dict.fromkeys(end.modules(), kind) if isinstance(end, nn.Module) else {}
    return found


def plain_name(name: str, model: nn.Module) -> str:
    """A dotted name without the parts that wrappers (DDP, FSDP, activation checkpointing, torch.compile) add."""
    name = _WRAPPERS.sub("", name).rstrip(".")
    wrapped = isinstance(model, nn.DataParallel) or type(model).__name__ == "DistributedDataParallel"
    return name.removeprefix("module.") if wrapped else name
