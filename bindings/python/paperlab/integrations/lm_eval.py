"""Decoders in EleutherAI's lm-evaluation-harness (`lm_eval`), by its own interface.

    from paperlab.integrations import lm_eval as bridge

    lm = bridge.register()("MODEL_DIR")                     # a class of lm_eval.api.model.LM
    lm_eval.simple_evaluate(model=lm, tasks=["my_task"])
    lm_eval.simple_evaluate(model="paperlab", model_args="pretrained=MODEL_DIR", tasks=["my_task"])

`Model` itself needs no lm_eval: its methods take requests with `args`, as the harness has them.
"""

import importlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from paperlab import _arguments, _tokenizer, nn

__all__ = ["Model", "Request", "register"]

_NEW_TOKENS = 256
_KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")
# Of new tokens, the first that is given counts.
_MOST_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Settings with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    "top_k": (None, 0),
    "use_cache": (True, False),
}


class Request(Protocol):
    """What the harness asks: `args` is (context, continuation), (text,) or (context, settings)."""

    @property
    def args(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class _Pair:
    """Tokens that are read, and the last of them that are scored."""

    tokens: list[int]
    num_scored: int


class Model:
    """A decoder with its tokenizer that answers the harness's three kinds of requests.

    pretrained: a Hugging Face directory, or a model of `paperlab.nn`, whose directory then has
    tokenizer.json unless `tokenizer` (of tokenizers, or a fast one of transformers) is given.
    dtype: of a directory's parameters; None or "auto": the files' own. device: where it computes.
    max_length: tokens that are read at most, by default what the model can. add_bos_token: whether
    the tokenizer puts its special tokens (as tokenizer.json has them) before a text; by default it
    does unless the text begins with `prefix_token_id`. prefix_token_id: what comes before a text
    that has no context, by default the model's bos token, else its end token. max_gen_toks: new
    tokens where a request names no number. batch_size and max_batch_size are taken for lm_eval's
    sake: requests are computed one by one, so they change no bit.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | nn.Decoder,
        *,
        tokenizer: Any = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = _NEW_TOKENS,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()  # of lm_eval's class, where there is one
        del batch_size, max_batch_size
        self.model = _loaded(pretrained, dtype, device)
        self.directory = Path(os.fsdecode(self.model.core.path))
        if tokenizer is None:
            tokenizer, self._tokenizer_name = _tokenizer.load(self.directory)
        else:
            self._tokenizer_name = str(getattr(tokenizer, "name_or_path", "")) or "given"
        self._tokens = getattr(tokenizer, "backend_tokenizer", tokenizer)  # of transformers
        most = self.model.max_positions
        self.max_length = _arguments.integer(
            "lm_eval", "max_length", min(most, 2**31) if max_length is None else max_length, 1, most
        )
        self.max_gen_toks = _arguments.integer("lm_eval", "max_gen_toks", max_gen_toks, 1, 2**31)
        if add_bos_token is not None:
            add_bos_token = _arguments.boolean("lm_eval", "add_bos_token", add_bos_token)
        self.add_bos_token = add_bos_token
        self._ends = list(self.model.core.eos_token_ids)
        self._prefix = prefix_token_id
        _tokenizer.check_vocabulary(self._tokens, self.model.vocab_size, self._ends)

    # What the harness asks.

    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Returns ln p(continuation | context) in nats, and whether greedy choice makes it.

        args: (context, continuation). Both are encoded together; spaces at the context's end belong
        to the continuation. An empty context is `prefix_token_id`. Of more than `max_length` tokens
        the first are left out.
        """
        results = []
        for request in requests:
            context, continuation = _texts(request, 2, "loglikelihood")
            results.append(self._score(self._pair(context, continuation)))
            self._remember("loglikelihood", request, results[-1])
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns ln p(text) in nats: every token is scored once.

        args: (text,). A window reads `max_length` tokens; the first begins with `prefix_token_id`
        (once, also where the tokenizer puts it before a text), each other one with the last token
        of the one before, and the last one has a full window's context.
        """
        results = []
        for request in requests:
            (text,) = _texts(request, 1, "loglikelihood_rolling")
            tokens = self.encode(text)
            if tokens[:1] == [self._first()]:  # it is read, not scored
                del tokens[0]
            windows = self._windows(tokens)
            results.append(sum((self._score(window)[0] for window in windows), 0.0))
            self._remember("loglikelihood_rolling", request, results[-1])
        return results

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Returns the text that follows a context, up to the first of the `until` strings.

        args: (context, settings) with `until` (a str or several), `max_gen_toks`, `do_sample`,
        `temperature` and `top_p`; greedy unless do_sample or a temperature > 0 is given. A context
        that leaves no room for `max_gen_toks` loses its first tokens. An end token ends too, and a
        special token whose text is in `until`. Draws are a function of the request and of how often
        it came before in the same call. Raises ValueError for other settings.
        """
        results = []
        times: Counter[str] = Counter()
        for request in requests:
            (context, settings) = request.args
            key = repr((context, settings))
            results.append(self._continue(context, dict(settings), times[key]))
            times[key] += 1
            self._remember("generate_until", request, results[-1])
        return results

    # What the harness knows of a model.

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if not self._ends:
            raise ValueError("lm_eval: config.json must name eos_token_id, got none")
        return self._ends[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        first = self._first()
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer in names of cached requests: a hash of its file."""
        return self._tokenizer_name

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes of a model."""
        parameters = list(self.model.parameters())
        return {
            "model_num_parameters": sum(p.numel() for p in parameters),
            "model_dtype": str(parameters[0].dtype),
        }

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of tokenizer_config.json, for the harness's notes."""
        if chat_template is False or chat_template is None:
            return None
        return str(self._chat_tokenizer().chat_template)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns messages as the text of the directory's template; needs transformers."""
        text: str = self._chat_tokenizer().apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        has_special = self.add_bos_token
        if has_special is None:
            first = self._first()
            start = "" if first is None else self._decode([first], is_whole=True)
            has_special = not (start and text.startswith(start))
        ids: list[int] = self._tokens.encode(text, add_special_tokens=has_special).ids
        return ids

    # How it computes.

    def _pair(self, context: str, continuation: str) -> _Pair:
        if not context:
            tokens = self._tokens.encode(continuation, add_special_tokens=False).ids
            if tokens and tokens[0] == self.prefix_token_id:
                return self._cut(tokens[:1], tokens[1:])
            return self._cut([self.prefix_token_id], tokens)
        kept = context.rstrip()
        whole = self.encode(context + continuation)
        before = self.encode(kept)
        return self._cut(whole[: len(before)], whole[len(before) :])

    def _cut(self, context: list[int], continuation: list[int]) -> _Pair:
        """The last tokens that fit; the one after the last that is read is scored too."""
        if not context or len(continuation) > self.max_length:
            what = "context" if not context else "continuation"
            raise ValueError(
                f"loglikelihood: the {what} must have 1..{self.max_length} tokens, got "
                f"{len(context) if not context else len(continuation)}"
            )
        return _Pair((context + continuation)[-self.max_length - 1 :], len(continuation))

    def _windows(self, tokens: list[int]) -> Iterator[_Pair]:
        size = self.max_length
        if tokens:
            yield _Pair([self.prefix_token_id, *tokens[:size]], min(size, len(tokens)))
        for begin in range(size, len(tokens), size):
            end = min(begin + size, len(tokens))
            yield _Pair(tokens[end - size - 1 : end], end - begin)

    @torch.no_grad()
    def _score(self, pair: _Pair) -> tuple[float, bool]:
        """Logits exist of the tokens before those that are scored, and of no others."""
        if pair.num_scored == 0:
            return 0.0, True
        read, wanted = pair.tokens[:-1], torch.tensor(pair.tokens[-pair.num_scored :])
        cache = self.model.new_cache(1, len(read))
        split = len(read) - pair.num_scored + 1
        logits = [self.model([read[:split]], cache=cache, last_only=True)]
        if split < len(read):
            logits.append(self.model([read[split:]], cache=cache))
        rows = torch.cat(logits, 1)[0]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        wanted = wanted.to(rows.device)
        log_p = torch.log_softmax(rows, -1).gather(1, wanted[:, None])
        return float(log_p.double().sum()), bool((rows.argmax(-1) == wanted).all())

    def _continue(self, context: str, settings: dict[str, Any], seed: int) -> str:
        stops, num_new, (temperature, top_p) = self._settings(settings)
        tokens = self.encode(context)[-(self.max_length - num_new) :] or [self.prefix_token_id]
        new: list[int] = []

        def goes_on(step: torch.Tensor) -> bool:
            new.append(int(step[0]))
            text = self._decode(new, is_whole=True) if stops else ""
            return not any(stop in text for stop in stops)

        self.model.generate(
            [tokens],
            num_new,
            attention_mask=torch.ones(1, len(tokens)),  # a padding token of a text is text
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_tokens=goes_on,
        )
        text = self._decode([token for token in new if token not in self._ends])
        for stop in stops:
            text = text.partition(stop)[0]
        return text

    def _decode(self, tokens: list[int], *, is_whole: bool = False) -> str:
        """The text of tokens, with that of special ones if `is_whole`."""
        text: str = self._tokens.decode(tokens, skip_special_tokens=not is_whole)
        return text

    def _first(self) -> int | None:
        """`prefix_token_id`, if there is one."""
        known = (self._prefix, self.model.config.get("bos_token_id"), *self._ends)
        return next((token for token in known if isinstance(token, int)), None)

    def _settings(self, settings: dict[str, Any]) -> tuple[list[str], int, tuple[float, float]]:
        """Strings that end a text, new tokens at most, temperature and top_p."""
        given = [settings.pop(name, None) for name in _MOST_NAMES]
        most = next((number for number in given if number is not None), self.max_gen_toks)
        for name, values in _NEUTRAL.items():
            if name in settings and settings[name] in values:
                del settings[name]
        unknown = sorted({*settings} - {*_KNOWN})
        if unknown:
            raise ValueError(
                f"generate_until: known settings are {', '.join(_KNOWN)}, got {unknown[0]!a:.60}"
            )
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        num_new = _arguments.integer("generate_until", "max_gen_toks", most, 1, 2**31)
        if num_new >= self.max_length:
            raise ValueError(
                f"generate_until: max_gen_toks must be less than the {self.max_length} tokens that "
                f"the model reads, got {num_new}"
            )
        temperature = float(settings.get("temperature") or 0.0)
        if settings.get("do_sample") is True and "temperature" not in settings:
            temperature = 1.0
        if settings.get("do_sample") is False:
            temperature = 0.0
        top_p = float(settings.get("top_p") or 1.0) if temperature > 0.0 else 1.0
        return [stop for stop in stops if stop], num_new, (temperature, top_p)

    def _chat_tokenizer(self) -> Any:
        try:
            import transformers
        except ImportError:
            raise ImportError(
                "chat templates need the package transformers: pip install transformers"
            ) from None
        found = transformers.AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        if found.chat_template is None:
            raise ValueError(f"{self.directory}: tokenizer_config.json has no chat template")
        return found

    def _remember(self, kind: str, request: Request, result: Any) -> None:
        hook = getattr(self, "cache_hook", None)
        if hook is not None:
            hook.add_partial(kind, request.args, result)


def register(name: str = "paperlab") -> type:
    """Gives `Model` to lm_eval under a name; returns it as a class of `lm_eval.api.model.LM`.

    Then model="paperlab" and model_args="pretrained=DIR" are known to `simple_evaluate`, and an
    object of the class can be given to it in place of a name. A second time changes nothing.
    Raises ImportError unless lm_eval >= 0.4 is installed, ValueError if `name` is taken or empty.
    """
    if not _arguments.text("register", "name", name):
        raise ValueError("register: name must not be empty, got ''")
    if name in _registered:
        return _registered[name]
    try:
        base = importlib.import_module("lm_eval.api.model").LM
        register_model = importlib.import_module("lm_eval.api.registry").register_model
    except ImportError as error:
        raise ImportError(
            f"register: needs the package lm_eval >= 0.4, which cannot be imported: {error}"
        ) from error
    harness_model = type("PaperlabModel", (Model, base), {"__doc__": Model.__doc__})
    try:
        register_model(name)(harness_model)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"register: name must be a new one, got {name!a:.60}: {error}") from None
    _registered[name] = harness_model
    return harness_model


_registered: dict[str, type] = {}


def _loaded(
    pretrained: object, dtype: torch.dtype | str | None, device: torch.device | str | int | None
) -> nn.Decoder:
    if not isinstance(pretrained, nn.Decoder):
        if not isinstance(pretrained, str | os.PathLike):
            raise TypeError(
                "lm_eval: pretrained must be a directory or a Decoder, got "
                f"{type(pretrained).__name__}"
            )
        wanted = None if dtype == "auto" else dtype
        return nn.as_decoder(nn.load(pretrained, dtype=wanted, device=device))
    if dtype not in (None, "auto") or device is not None:
        raise ValueError("lm_eval: dtype and device must be None for a model that is loaded")
    return pretrained


def _texts(request: Request, count: int, function: str) -> tuple[str, ...]:
    texts = tuple(request.args)
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{function}: args must be {count} str, got {texts!a:.60}")
    return texts
