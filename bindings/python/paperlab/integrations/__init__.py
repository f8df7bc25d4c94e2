"""paperlab's operators and models in other libraries, which are loaded when asked to register."""

from paperlab.integrations import lm_eval, transformers

__all__ = ["lm_eval", "transformers"]
