"""paperlab.integrations.lm_eval: requests of lm-evaluation-harness, by its documented interface."""

import json
from dataclasses import dataclass

import pytest
import tiny_decoder
import tokenizers
import torch
import transformers
from paperlab import nn
from paperlab.integrations import lm_eval as bridge

RNG = torch.Generator().manual_seed(5)
TEXT = "The quick brown fox, jumps over it! 0123456789"


@dataclass
class Instance:
    """As the harness asks: what it holds besides, nobody reads."""

    args: tuple


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = tiny_decoder.random_model(bos_token_id=tiny_decoder.USER, eos_token_id=tiny_decoder.END)
    return tiny_decoder.save(model, path)


@pytest.fixture(scope="module")
def lm(directory):
    return bridge.Model(directory)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    model = tiny_decoder.chain_model(b"abcdefgh.", tie_word_embeddings=False)
    return bridge.Model(tiny_decoder.save(model, tmp_path_factory.mktemp("chain")))


def ask(*args):
    return [Instance(args)]


def by_definition(lm, context, continuation):
    """ln p of the tokens of `continuation` after those of `context`, in float64, and greediness."""
    tokens = torch.tensor([context + continuation])
    model = nn.load(lm.directory, dtype=torch.float64)
    rows = model(tokens[:, :-1])[0, len(context) - 1 :].detach()
    wanted = tokens[0, len(context) :]
    log_p = rows.log_softmax(-1).gather(1, wanted[:, None])
    return float(log_p.sum()), bool((rows.argmax(-1) == wanted).all())


def close(value):
    # float32 of 2 layers and sums of up to 60 logarithms of size 10: 1e-4 is a hundred roundings.
    return pytest.approx(value, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    ("context", "continuation", "split"),
    [
        ("The quick", " brown fox", 9),
        ("The quick ", "brown fox", 9),  # the space belongs to what follows
        ("The \t ", "b", 3),
        ("x", "y", 1),
        ("a" * 40, "b" * 24, 40),  # as many tokens as the model reads, and one
        ("a" * 60, "b" * 9, 60),
    ],
)
def test_a_continuation(lm, context, continuation, split):
    tokens = list((context + continuation).encode())[-65:]
    count = len(context + continuation) - split
    wanted, is_greedy = by_definition(lm, tokens[:-count], tokens[-count:])
    ((log_p, greedy),) = lm.loglikelihood(ask(context, continuation))
    assert type(log_p) is float and log_p == close(wanted)
    assert type(greedy) is bool and greedy == is_greedy


def test_without_a_context_the_first_token_of_the_model_comes_before(lm):
    wanted, _ = by_definition(lm, [tiny_decoder.USER], list(b"abc"))
    assert lm.loglikelihood(ask("", "abc"))[0][0] == close(wanted)
    # A text that begins with it has it once.
    assert lm.loglikelihood(ask("", "<|user|>abc"))[0][0] == close(wanted)
    assert lm.prefix_token_id == tiny_decoder.USER and lm.eot_token_id == tiny_decoder.END
    other = bridge.Model(lm.model, prefix_token_id=7)
    wanted, _ = by_definition(lm, [7], list(b"abc"))
    assert other.loglikelihood(ask("", "abc"))[0][0] == close(wanted)


def test_a_continuation_that_is_greedy(chain):
    requests = [Instance(("ab", text)) for text in ("c", "cdefgh.", "cdx", "x")]
    assert [greedy for _, greedy in chain.loglikelihood(requests)] == [True, True, False, False]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 7, 8, 9, 10])
def test_windows_score_every_token_once(directory, length):
    lm = bridge.Model(directory, max_length=4)
    tokens = list(TEXT.encode())[:length]
    before, wanted, scored = [tiny_decoder.USER, *tokens], 0.0, 0
    for begin in range(0, length, 4):
        end = min(begin + 4, length)
        first = (
            max(0, end - 4) if begin else 0
        )  # a later window reads four tokens, whatever it scores
        wanted += by_definition(lm, before[first : begin + 1], tokens[begin:end])[0]
        scored += end - begin
    assert scored == length
    assert lm.loglikelihood_rolling(ask(TEXT[:length])) == [close(wanted)]


def test_the_windows_of_the_harness_s_own_example(directory):
    """Tokens 0..9, four at a time: PRED 0-3 | 4-7 of INPUT 3-6 | 8, 9 of INPUT 5-8."""
    lm = bridge.Model(directory, max_length=4, prefix_token_id=99)
    windows = [(w.tokens, w.num_scored) for w in lm._windows(list(range(10)))]
    assert windows == [
        ([99, 0, 1, 2, 3], 4),
        ([3, 4, 5, 6, 7], 4),
        ([5, 6, 7, 8, 9], 2),
    ]


def test_the_answers_come_in_the_order_of_the_requests(lm):
    pairs = [("a", "bc"), ("The quick", " fox"), ("", "z"), ("a", "bc")]
    together = lm.loglikelihood([Instance(pair) for pair in pairs])
    assert together == [lm.loglikelihood(ask(*pair))[0] for pair in pairs]
    assert together[0] == together[3]
    assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == lm.generate_until([]) == []


@pytest.mark.parametrize(
    ("context", "settings", "wanted"),
    [
        ("ab", {}, "cdefgh."),  # the end token ends, and is no text
        ("ab", {"until": ["f"]}, "cde"),
        ("ab", {"until": "fg"}, "cde"),
        ("ab", {"until": ["h", "de", ""]}, "c"),
        ("ab", {"until": ["c"]}, ""),
        ("ab", {"until": None, "max_gen_toks": 3}, "cde"),
        ("ab", {"until": [], "max_new_tokens": 2}, "cd"),
        ("ab", {"do_sample": False, "temperature": 0.0}, "cdefgh."),
        ("ab", {"do_sample": False, "temperature": 0.7}, "cdefgh."),
        ("x" * 100 + "ab", {"max_gen_toks": 60}, "cdefgh."),  # the last 4 tokens are read
        ("ab", {"max_gen_toks": None, "max_tokens": 2, "max_new_tokens": 3}, "cde"),
        ("ab", {"num_beams": 1, "top_k": None, "repetition_penalty": 1.0}, "cdefgh."),
        ("", {"max_gen_toks": 2}, "\0\0"),  # of the end token it knows nothing: byte 0
    ],
)
def test_generating(chain, context, settings, wanted):
    options = {"max_gen_toks": 40} | settings
    if "max_new_tokens" in settings and "max_tokens" not in settings:
        del options["max_gen_toks"]
    before = dict(options)
    assert chain.generate_until(ask(context, options)) == [wanted]
    assert options == before


def test_sampling(chain, lm):
    settings = {"max_gen_toks": 8, "do_sample": True, "temperature": 5.0, "top_p": 0.9}
    texts = lm.generate_until(ask("fox", settings))
    assert texts == lm.generate_until(ask("fox", settings))
    assert texts != lm.generate_until(ask("fox", {"max_gen_toks": 8}))
    assert texts != lm.generate_until(ask("fox", {"max_gen_toks": 8, "do_sample": True}))
    # A request that is repeated, as the harness repeats it, is drawn anew; others don't matter.
    many = [Instance((text, settings)) for text in ("fox", "dog", "fox", "fox")]
    first, _, second, third = lm.generate_until(many)
    assert [first] == texts and len({first, second, third}) == 3


def test_a_padding_token_in_a_context_is_read(directory, tmp_path):
    """As the harness does: it pads with a mask, and ours are read one by one."""
    model = tiny_decoder.random_model(pad_token_id=ord("o"), eos_token_id=tiny_decoder.END)
    padded = bridge.Model(tiny_decoder.save(model, tmp_path))
    plain = bridge.Model(directory)
    requests = [Instance((text, {"max_gen_toks": 9})) for text in ("foo o", "o", "oooo The fox")]
    assert padded.generate_until(requests) == plain.generate_until(requests)


def test_a_special_token_in_until_ends(tmp_path):
    model = tiny_decoder.chain_model(b"abc", tie_word_embeddings=False)
    with torch.no_grad():  # c is followed by <|user|>, that by x without end
        head = model.get_parameter("lm_head.weight")
        head[:, ord("c")] = 0
        head[tiny_decoder.USER, ord("c")] = 1
        head[ord("x"), [tiny_decoder.USER, ord("x")]] = 1
    lm = bridge.Model(tiny_decoder.save(model, tmp_path))
    settings = {"max_gen_toks": 5}
    assert lm.generate_until(ask("a", settings)) == ["bcxx"]  # itself it is no text
    assert lm.generate_until(ask("a", settings | {"until": ["<|user|>"]})) == ["bc"]


def test_special_tokens_of_the_tokenizer_come_before_a_text(directory, tmp_path):
    tokenizer = tiny_decoder.byte_tokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", tiny_decoder.USER)]
    )
    tiny_decoder.save(nn.load(directory), tmp_path, tokenizer)
    lm = bridge.Model(tmp_path)
    first = tiny_decoder.USER
    assert lm.encode("ab") == lm.encode("<|user|>ab") == [first, 97, 98]
    assert bridge.Model(tmp_path, add_bos_token=False).encode("ab") == [97, 98]
    assert bridge.Model(tmp_path, add_bos_token=True).encode("<|user|>a") == [first, first, 97]
    wanted, _ = by_definition(lm, [first, 97], [98])
    assert lm.loglikelihood(ask("a", "b"))[0][0] == close(wanted)
    wanted, _ = by_definition(lm, [first], [97, 98])
    assert lm.loglikelihood(ask("", "ab"))[0][0] == close(wanted)
    assert lm.loglikelihood_rolling(ask("ab")) == [close(wanted)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 1, "top_k": 5}, "known settings are until, .* got 'top_k'"),
        ({"num_beams": 4}, "known settings are until, .* got 'num_beams'"),
        ({"max_gen_toks": 0}, "max_gen_toks must be in"),
        ({"max_gen_toks": 64}, "must be less than the 64 tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1.0, "top_p": 2.0}, "top_p"),
    ],
)
def test_settings_that_are_refused(lm, settings, message):
    with pytest.raises(ValueError, match=message):
        lm.generate_until(ask("fox", {"max_gen_toks": 4} | settings))


def test_requests_and_arguments_that_are_refused(lm, directory, tmp_path):
    for args in (("a",), ("a", 3), ("a", "b", "c")):
        with pytest.raises(ValueError, match="loglikelihood: args must be 2 str"):
            lm.loglikelihood(ask(*args))
    with pytest.raises(ValueError, match=r"continuation must have 1\.\.64 tokens, got 65"):
        lm.loglikelihood(ask("a", "b" * 65))
    for options, message in (
        ({"max_length": 65}, "max_length must be in 1..64"),
        ({"max_length": 0}, "max_length must be in"),
        ({"max_gen_toks": 0}, "max_gen_toks must be in"),
        ({"add_bos_token": 1}, "add_bos_token must be a bool"),
        ({"dtype": "int8"}, "dtype must be"),
    ):
        with pytest.raises(ValueError, match=message):
            bridge.Model(directory, **options)
    with pytest.raises(TypeError, match="pretrained must be a directory or a Decoder"):
        bridge.Model(3)
    with pytest.raises(ValueError, match="dtype and device must be None"):
        bridge.Model(lm.model, dtype="float32")
    with pytest.raises(FileNotFoundError):
        bridge.Model(tmp_path / "nowhere")


def test_strings_as_the_command_line_gives_them(directory):
    lm = bridge.Model(
        str(directory), dtype="bfloat16", device="cpu", batch_size="auto", max_batch_size=8
    )
    assert lm.get_model_info()["model_dtype"] == "torch.bfloat16"
    assert bridge.Model(directory, dtype="auto").get_model_info() == {
        "model_num_parameters": sum(p.numel() for p in lm.model.parameters()),
        "model_dtype": "torch.float32",
    }
    assert len(lm.tokenizer_name) == 64
    other = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    given = bridge.Model(nn.load(directory), tokenizer=other)
    assert given.encode(TEXT) == lm.encode(TEXT) == [*TEXT.encode()]
    messages = [{"role": "user", "content": "hi"}]
    assert lm.apply_chat_template(messages) == "<|user|>hi>"
    assert lm.chat_template(False) is None and "messages" in lm.chat_template(True)


def write_task(path):
    """A multiple-choice task about the alphabet; the right answer is what the chain knows."""
    lines = [
        {"question": "abc", "choices": ["a", "d", "hg"], "answer": 1},
        {"question": "fg", "choices": ["h.", "hh"], "answer": 0},
        {"question": "d", "choices": ["c", "f", "ef"], "answer": 2},
        {"question": "ab", "choices": ["x", "c"], "answer": 0},  # wrong on purpose
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_a_local_task_file(chain, tmp_path):
    """The harness's accuracy: the choice with the largest log-likelihood, as it computes it."""
    write_task(tmp_path / "task.jsonl")
    right = []
    for line in (tmp_path / "task.jsonl").read_text().splitlines():
        document = json.loads(line)
        requests = [Instance((document["question"], choice)) for choice in document["choices"]]
        log_ps = [log_p for log_p, _ in chain.loglikelihood(requests)]
        right.append(log_ps.index(max(log_ps)) == document["answer"])
    assert right == [True, True, True, False]


def test_register_needs_the_harness(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ImportError, match="register: needs the package lm_eval"):
        bridge.register("paperlab_nowhere")
    with pytest.raises(ValueError, match="name must not be empty"):
        bridge.register("")


def test_the_harness_itself(chain, tmp_path):
    harness = pytest.importorskip("lm_eval", reason="an optional check against the package lm_eval")
    lines = write_task(tmp_path / "task.jsonl")
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "task.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
    }
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    bits = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    roll = {"output_type": "loglikelihood_rolling", "doc_to_target": "{{question}}"}
    generate = {"output_type": "generate_until", "doc_to_target": "{{choices[answer]}}"}
    generate["generation_kwargs"] = {"until": ["."], "max_gen_toks": 1, "do_sample": False}
    tasks = [
        {"task": "choose", **data, **choice, "doc_to_target": "answer", "metric_list": [accuracy]},
        {"task": "read", **data, **roll, "metric_list": [bits]},
        {"task": "write", **data, **generate, "metric_list": [exact]},
    ]
    model_class = bridge.register()
    assert bridge.register() is model_class
    assert issubclass(model_class, harness.api.model.LM)
    arguments = f"pretrained={chain.directory},max_length=32"
    results = harness.simple_evaluate(
        model="paperlab", model_args=arguments, tasks=tasks, bootstrap_iters=0
    )["results"]
    assert results["choose"]["acc,none"] == pytest.approx(3 / 4)
    assert results["write"]["exact_match,none"] == pytest.approx(1 / 4)  # the one of one token
    nats = sum(chain.loglikelihood_rolling([Instance((line["question"],)) for line in lines]))
    num_bytes = sum(len(line["question"]) for line in lines)
    wanted = -nats / num_bytes / 0.6931471805599453
    assert results["read"]["bits_per_byte,none"] == pytest.approx(wanted, rel=1e-6)
    again = harness.simple_evaluate(model=model_class(chain.directory), tasks=tasks[:1])
    assert again["results"]["choose"]["acc,none"] == pytest.approx(3 / 4)
