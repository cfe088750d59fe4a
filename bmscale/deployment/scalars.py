"""The four scalars of a configuration moved into the weights, for formats that have no place for them.

Each is exact but for rounding:

| scalar                         | goes into                                                                     |
|--------------------------------|-------------------------------------------------------------------------------|
| attention_scale                | the query projections; the query norm of self-attention where there is one    |
| residual_scale                 | output and down projections; the norm behind the branch where there is one;   |
|                                | with the factor of μP, which goes by the depth of the stack                   |
| logit_scale                    | the last norm before the head, which nothing but the head reads               |
| embedding_scale, sqrt(D)       | the token tables; of a table that is the head as well, the last norm takes it |
|                                | back                                                                          |
"""

from typing import Any

import torch

from bmscale.model.config import EncoderDecoderConfig, is_classifier
from bmscale.model.parametrization import attention_scale, depth_of, embedding_scale, logit_scale, residual_scale


def fold(config: Any, state: dict[str, torch.Tensor], embedding_factor: float = 1.0) -> dict[str, torch.Tensor]:
    """The state of the same function with all scalars at 1 and embeddings multiplied by `embedding_factor`.

    `state` is the model's `state_dict`, with a tied weight under each of its names; tensors that change are copied.
    `embedding_factor` is what the format itself multiplies embeddings by, such as sqrt(D).
    """
    embedding = embedding_scale(config) / embedding_factor
    last = logit_scale(config)
    if config.tie_word_embeddings and not is_classifier(config):
        last /= embedding
    folded = {}
    for name, tensor in state.items():
        factor = _factor(config, name, embedding, last)
        folded[name] = tensor if factor == 1.0 else tensor * factor
    return folded


def _factor(config: Any, name: str, embedding: float, last: float) -> float:
    """What one parameter is multiplied by, its bias alike."""
    module = name.rpartition(".")[0]
    if module.endswith("embed.tokens"):
        return embedding
    if module == "lm_head":
        # The last norm has taken the logit scale; a tied head is the table.
        return embedding if config.tie_word_embeddings else 1.0
    if module == ("model.decoder.norm" if isinstance(config, EncoderDecoderConfig) else "model.norm"):
        return 1.0 if is_classifier(config) else last
    if module.endswith("self_attention.q_norm"):
        return attention_scale(config)
    if module.endswith("q_proj"):
        is_normed = config.qk_norm and module.endswith("self_attention.q_proj")
        return 1.0 if is_normed else attention_scale(config)
    if module.endswith("_post_norm") or (not config.sandwich_norm and module.endswith(("o_proj", "down_proj"))):
        return residual_scale(config, depth_of(name, config))
    return 1.0
