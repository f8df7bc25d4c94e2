"""Low-rank adapters of a model's linear layers, in files as the package peft has them.

    model = paperlab.nn.load("DIR")
    adapter = paperlab.lora.attach(model, r=8, alpha=16, target_modules=["q_proj", "v_proj"])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)   # the base is frozen
    ...                                                            # a loop of loss, backward, step
    paperlab.lora.save(model, "ADAPTER")

    paperlab.lora.load(model, "ADAPTER")    # of another model of that kind
    paperlab.lora.merge(model)              # W + scaling B A, at the speed of the base
    model.save_pretrained("MERGED")

A layer x W^T + b becomes x W^T + b + scaling (x A^T) B^T with A [r, in], B [out, r] and scaling
alpha / r, or alpha / sqrt(r) with use_rslora.
Sources: Hu et al., arXiv:2106.09685; Kalajdzievski, arXiv:2312.03732 (use_rslora).
"""

from paperlab.lora._adapter import Adapter, attach, detach, load, merge, of, save, unmerge

__all__ = ["Adapter", "attach", "detach", "load", "merge", "of", "save", "unmerge"]
