"""Names of linear layers, where transformers 5 has others in memory than in files.

Adapters are made after those in memory: of a ViT's layers, and of the head of GPT-NeoX.
"""

from collections.abc import Mapping

import torch

from paperlab._encoder import Encoder, ImageEncoder
from paperlab._module import CppModule
from paperlab.lora._saved import PREFIX
from paperlab.lora._settings import Settings


def _others(model: CppModule) -> dict[str, str]:
    """Linear layers that another version of transformers gives another name: that name."""
    if isinstance(model, Encoder | ImageEncoder):
        return model.other_linear_names()
    return {"embed_out": "lm_head"} if model.config.get("model_type") == "gpt_neox" else {}


def chosen(model: CppModule, settings: Settings) -> dict[str, str]:
    """The targets of a new adapter, and the names that its files shall have for them."""
    names = model.linear_names()
    others = _others(model)
    try:
        return {name: name for name in settings.targets("attach", names)}
    except ValueError:
        known = {others.get(name, name): name for name in names}
        try:
            targets = settings.targets("attach", list(known)) if others else []
        except ValueError:
            targets = []
        if not targets:
            raise
        return {known[target]: target for target in targets}


def stored(model: CppModule, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The linear layers' names as the tensors of an adapter have them, and as the model has."""
    names = model.linear_names()
    others = _others(model)
    if not any(f"{PREFIX}{other}.lora_A.weight" in tensors for other in others.values()):
        others = {}
    return {others.get(name, name): name for name in names}
