"""paperlab's operators in other libraries; each is loaded when it is asked to register."""

from paperlab.integrations import transformers

__all__ = ["transformers"]
