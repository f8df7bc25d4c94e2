"""paperlab.eval.streamed: the scores of a model whose weights stay in its files."""

import json

import decoder_models as models
import family_models
import pytest
import safetensors.torch
import tiny_decoder
import torch
from decoder_models import SOME
from paperlab import eval as evaluation
from paperlab import nn
from paperlab._commands.evaluate import main

TOKENS = models.tokens(1, 23)[0]


@pytest.mark.parametrize("name", SOME)
def test_scores_have_the_bits_of_a_loaded_model(name, tmp_path):
    models.ours(name, torch.float32).save_pretrained(tmp_path, max_shard_size="40KB")
    model, loaded = evaluation.streamed(tmp_path), nn.load(tmp_path)
    assert (model.vocab_size, model.max_positions) == (loaded.vocab_size, loaded.max_positions)
    check_equal(model, loaded)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama_biases_tied", "neox"])
def test_types_that_are_converted_when_they_are_used(name, stored, tmp_path):
    models.ours(name, torch.float32).to(stored).save_pretrained(tmp_path)
    for dtype in (None, torch.float32, torch.float64, "bfloat16", "float16"):
        model, loaded = evaluation.streamed(tmp_path, dtype=dtype), nn.load(tmp_path, dtype=dtype)
        assert model.dtype == next(loaded.parameters()).dtype
        check_equal(model, loaded)


def test_core_context_attention_is_refused(tmp_path):
    models.ours("llama", torch.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"attn_implementation": "paperlab_cca", "cca_group_size": 4, "cca_window": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"streamed: attn_implementation .* got 'paperlab_cca'"):
        evaluation.streamed(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "opt_after_projected", "gemma2"])
def test_other_families(name, tmp_path):
    family_models.ours(name, torch.float32).save_pretrained(tmp_path)
    for dtype in (None, torch.bfloat16):
        check_equal(
            evaluation.streamed(tmp_path, dtype=dtype),
            nn.load(tmp_path, dtype=dtype),
            TOKENS % family_models.VOCABULARY,
        )


def check_equal(model, loaded, tokens=TOKENS):
    for context, stride in ((22, 22), (9, 4)):
        got = evaluation.score(model, tokens, context=context, stride=stride)
        wanted = evaluation.score(loaded, tokens, context=context, stride=stride)
        assert torch.equal(got.nll, wanted.nll)
        assert torch.equal(got.position, wanted.position)


def test_it_goes_wherever_a_model_goes(tmp_path):
    models.ours("llama", torch.float32).save_pretrained(tmp_path)
    model, loaded = evaluation.streamed(tmp_path), nn.load(tmp_path)
    wanted = evaluation.perplexity(loaded, TOKENS, context=9)
    assert evaluation.perplexity(model, TOKENS, context=9) == wanted
    texts, sizes = {"a": [TOKENS, TOKENS[:5]]}, {"a": 40}
    assert evaluation.by_domain(model, texts, sizes, context=9) == evaluation.by_domain(
        loaded, texts, sizes, context=9
    )
    (tmp_path / "model.safetensors").unlink()  # as with a loaded model, the file lives on
    assert evaluation.perplexity(model, TOKENS, context=9) == wanted


def test_errors(tmp_path):
    models.ours("llama", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        evaluation.streamed(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="streamed: dtype must be"):
        evaluation.streamed(tmp_path, dtype="int8")
    with pytest.raises(TypeError, match="streamed: directory must be a path"):
        evaluation.streamed(3)
    model = evaluation.streamed(tmp_path)
    with pytest.raises(ValueError, match="context must be"):
        evaluation.score(model, TOKENS, context=0)
    with pytest.raises(ValueError, match="got token 100000"):
        evaluation.score(model, [1, 100000], context=4)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[3] = torch.nan
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"model.safetensors: tensor '{name}' holds NaN at"):
        evaluation.streamed(tmp_path)


def test_the_command(tmp_path, capsys):
    directory = tiny_decoder.save(tiny_decoder.random_model(), tmp_path / "model")
    (tmp_path / "text").write_text("Some text that is read." * 5)
    results = []
    for number, words in enumerate(([], ["--stream"], ["--stream", "--dtype", "float64"])):
        out = tmp_path / f"{number}.json"
        arguments = ["--model", str(directory), "--text", str(tmp_path / "text"), *words]
        assert main([*arguments, "--json", str(out)]) == 0
        results.append(json.loads(out.read_text()))
        del results[-1]["evaluation_s"]
    capsys.readouterr()
    assert results[1] == results[0]
    assert results[2]["settings"]["dtype"] == "float64"
    assert results[2]["overall"]["nll"] == pytest.approx(results[0]["overall"]["nll"], rel=1e-5)
