#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/nn/decoder.h"
#include "tests/paperlab/nn/decoder_cases.h"

namespace paperlab::nn {
namespace {

using Strings = std::vector<std::string>;

// The values of each query's own position: a cache of its own, no keys.
class Echo final : public Attention {
 public:
  struct Count final : LayerCache {
    std::int64_t num_bytes() const override { return 7; }
    std::int64_t num_tokens = 0;
  };

  at::Tensor forward(const AttentionInput& input, LayerCache* cache) const override {
    EXPECT_EQ(input.query.dim(), 4);
    EXPECT_EQ(input.layer, 1);
    EXPECT_EQ(input.window, 3);
    if (cache != nullptr) {
      auto& count = dynamic_cast<Count&>(*cache);
      EXPECT_EQ(count.num_tokens, input.num_past);
      count.num_tokens += input.query.size(1);
    }
    return input.value.repeat_interleave(input.query.size(2) / input.value.size(2), 2);
  }

  std::unique_ptr<LayerCache> new_cache(const CacheShape& shape) const override {
    EXPECT_EQ(shape.batch_size, 2);
    EXPECT_EQ(shape.max_length, 7);
    return std::make_unique<Count>();
  }
};

TEST(DecoderParts, AnotherAttentionIsUsedWithItsCache) {
  Decoder decoder = new_decoder(llama());
  const at::Tensor before = decoder.forward(some_tokens());
  const auto original = decoder.block(1).attention;
  decoder.block(1).attention = std::make_shared<Echo>();
  const at::Tensor whole = decoder.forward(some_tokens());
  EXPECT_FALSE(at::allclose(whole, before));
  const auto cache = decoder.new_cache(2, 7);
  const auto plain = new_decoder(llama()).new_cache(2, 7);
  EXPECT_EQ(cache->num_bytes(), plain->num_bytes() / 2 + 7);
  std::vector<at::Tensor> pieces;
  for (const auto& [begin, end] : {std::pair{0, 2}, {2, 3}, {3, 7}}) {
    pieces.push_back(decoder.forward(some_tokens().slice(1, begin, end), {.cache = cache.get()}));
  }
  expect_close(at::cat(pieces, 1), whole);
  decoder.block(1).attention = original;
  EXPECT_TRUE(at::equal(decoder.forward(some_tokens()), before));
}

TEST(DecoderParts, FullAttentionRefusesTheCacheOfAnotherForm) {
  Decoder decoder = new_decoder(llama());
  decoder.block(1).attention = std::make_shared<Echo>();
  const auto cache = decoder.new_cache(2, 7);
  decoder.block(1).attention = std::make_shared<FullAttention>();
  EXPECT_THROW(decoder.forward(some_tokens(), {.cache = cache.get()}), ValueError);
  EXPECT_EQ(cache->length, 0);
}

TEST(DecoderParts, AModelRefusesTheCacheOfAnother) {
  const Decoder one = new_decoder(llama());
  const Decoder other = new_decoder(llama());
  const auto cache = one.new_cache(2, 7);
  EXPECT_THROW(other.forward(some_tokens(), {.cache = cache.get()}), c10::ValueError);
  EXPECT_EQ(cache->length, 0);
  one.forward(some_tokens(), {.cache = cache.get()});
  EXPECT_GT(cache->length, 0);
}

// x + scale * out, and the calls in their order.
class Scaled final : public Connection {
 public:
  explicit Scaled(double scale) : scale_(scale) {}

  class State final : public Stream {
   public:
    State(at::Tensor x, double scale, Strings* calls)
        : x_(std::move(x)), scale_(scale), calls_(calls) {}

    AttentionStreams read_attention(std::int64_t layer, const NormLayer& norm) override {
      calls_->push_back("read attention " + std::to_string(layer));
      const at::Tensor y = norm.forward(x_);
      return {y, y, y};
    }
    void write_attention(std::int64_t layer, const at::Tensor& out) override {
      calls_->push_back("write attention " + std::to_string(layer));
      x_ = x_ + scale_ * out;
    }
    at::Tensor read_ffn(std::int64_t layer, const NormLayer& norm) override {
      calls_->push_back("read ffn " + std::to_string(layer));
      return norm.forward(x_);
    }
    void write_ffn(std::int64_t layer, const at::Tensor& out) override {
      calls_->push_back("write ffn " + std::to_string(layer));
      x_ = x_ + scale_ * out;
    }
    at::Tensor finish(const NormLayer& norm) override {
      calls_->emplace_back("finish");
      return norm.forward(x_);
    }

   private:
    at::Tensor x_;
    double scale_;
    Strings* calls_;
  };

  std::unique_ptr<Stream> start(const at::Tensor& embeddings) const override {
    calls.clear();
    return std::make_unique<State>(embeddings, scale_, &calls);
  }

  mutable Strings calls;

 private:
  double scale_;
};

TEST(DecoderParts, AnotherConnectionCarriesTheState) {
  for (const DecoderConfig& config : {llama(), neox()}) {
    Decoder decoder = new_decoder(config);
    const at::Tensor plain = decoder.forward(some_tokens());
    decoder.set_connection(std::make_shared<Scaled>(1.0));
    expect_close(decoder.forward(some_tokens()), plain);
    decoder.set_connection(std::make_shared<Scaled>(0.25));
    const at::Tensor scaled = decoder.forward(some_tokens());
    decoder.set_connection(std::make_shared<ResidualConnection>());
    EXPECT_TRUE(at::equal(decoder.forward(some_tokens()), plain));
    for (const Decoder::Parameter& parameter : decoder.parameters()) {
      if (parameter.spec.role == Role::kOut || parameter.spec.role == Role::kDown) {
        decoder.set_parameter(parameter.spec.name, *parameter.value * 0.25);
      }
    }
    expect_close(decoder.forward(some_tokens()), scaled);
  }
}

TEST(DecoderParts, TheOrderOfReadsAndWrites) {
  for (const bool is_parallel : {false, true}) {
    DecoderConfig config = neox();
    config.is_parallel = is_parallel;
    Decoder decoder = new_decoder(config);
    const auto connection = std::make_shared<Scaled>(1.0);
    decoder.set_connection(connection);
    decoder.hidden(some_tokens());
    Strings wanted;
    for (const std::string layer : {" 0", " 1"}) {
      wanted.push_back("read attention" + layer);
      wanted.push_back((is_parallel ? "read ffn" : "write attention") + layer);
      wanted.push_back((is_parallel ? "write attention" : "read ffn") + layer);
      wanted.push_back("write ffn" + layer);
    }
    wanted.emplace_back("finish");
    EXPECT_EQ(connection->calls, wanted);
  }
}

// Adds a parameter of its own to the state, and takes other layers' values.
class Shifted final : public Connection {
 public:
  explicit Shifted(std::shared_ptr<const at::Tensor> shift) : shift_(std::move(shift)) {}

  class State final : public Stream {
   public:
    explicit State(at::Tensor x) : x_(std::move(x)) {}
    AttentionStreams read_attention(std::int64_t /*layer*/, const NormLayer& norm) override {
      const at::Tensor y = norm.forward(x_);
      return {y, y, y};
    }
    void route_heads(std::int64_t layer, AttentionInput& input) override {
      if (layer == 0) {
        value_ = input.value;
      }
      input.value = value_;
    }
    void write_attention(std::int64_t /*layer*/, const at::Tensor& out) override { x_ = x_ + out; }
    at::Tensor read_ffn(std::int64_t /*layer*/, const NormLayer& norm) override {
      return norm.forward(x_);
    }
    void write_ffn(std::int64_t /*layer*/, const at::Tensor& out) override { x_ = x_ + out; }
    at::Tensor finish(const NormLayer& norm) override { return norm.forward(x_); }

   private:
    at::Tensor x_;
    at::Tensor value_;
  };

  std::unique_ptr<Stream> start(const at::Tensor& embeddings) const override {
    return std::make_unique<State>(embeddings + *shift_);
  }

 private:
  std::shared_ptr<const at::Tensor> shift_;
};

TEST(DecoderParts, AConnectionHasParametersOfTheDecoder) {
  const DecoderConfig config = llama();
  std::vector<ParameterSpec> specs = parameter_specs(config, Family::kLlama);
  std::vector<at::Tensor> values = values_of(config);
  specs.push_back({"shift", Role::kConnection, -1, false, {config.d_model}});
  values.push_back(at::full({config.d_model}, 0.5, at::kDouble));
  const MakeConnection make = [](const ParameterOf& of) {
    return std::make_shared<Shifted>(of("shift"));
  };
  Decoder decoder(config, specs, values, make);
  const at::Tensor result = decoder.forward(some_tokens());
  const at::Tensor embedding = values.front() + 0.5;
  decoder.set_parameter("shift", at::zeros({config.d_model}, at::kDouble));
  decoder.set_parameter("model.embed_tokens.weight", embedding);
  expect_close(decoder.forward(some_tokens()), result);
  values.back() = at::zeros({config.d_model}, at::kDouble);
  values.front() = embedding;
  EXPECT_TRUE(at::equal(decoder.with_values(values)->forward(some_tokens()),
                        decoder.forward(some_tokens())));
  // The second layer's own values are not used.
  decoder.set_parameter("model.layers.1.self_attn.v_proj.weight",
                        at::zeros_like(*decoder.find(Role::kValue, 1)));
  expect_close(decoder.forward(some_tokens()), result);
  EXPECT_THROW(Decoder(config, specs, values,
                       [](const ParameterOf& of) { return std::make_shared<Shifted>(of("no")); }),
               ValueError);
  std::swap(specs.front(), specs.back());
  std::swap(values.front(), values.back());
  EXPECT_THROW(Decoder(config, specs, values, make), ValueError);
}

// Streams that differ.
class Split final : public Connection {
 public:
  class State final : public Stream {
   public:
    explicit State(at::Tensor x) : x_(std::move(x)) {}
    AttentionStreams read_attention(std::int64_t /*layer*/, const NormLayer& norm) override {
      return {norm.forward(x_), norm.forward(2.0 * x_ + 0.1), norm.forward(x_ - 0.1)};
    }
    void write_attention(std::int64_t /*layer*/, const at::Tensor& out) override { x_ = x_ + out; }
    at::Tensor read_ffn(std::int64_t /*layer*/, const NormLayer& norm) override {
      return norm.forward(x_);
    }
    void write_ffn(std::int64_t /*layer*/, const at::Tensor& out) override { x_ = x_ + out; }
    at::Tensor finish(const NormLayer& norm) override { return norm.forward(x_); }

   private:
    at::Tensor x_;
  };
  std::unique_ptr<Stream> start(const at::Tensor& embeddings) const override {
    return std::make_unique<State>(embeddings);
  }
};

TEST(DecoderParts, QueriesKeysAndValuesMayReadDifferentStreams) {
  Decoder decoder = new_decoder(llama());
  const at::Tensor plain = decoder.forward(some_tokens());
  decoder.set_connection(std::make_shared<Split>());
  const std::int64_t id = decoder.add_linear_hook(
      [](const std::string& name, const at::Tensor& x) { EXPECT_EQ(x.size(0), 2) << name; });
  EXPECT_FALSE(at::allclose(decoder.forward(some_tokens()), plain));
  decoder.remove_linear_hook(id);
  Decoder fused = new_decoder(neox());
  fused.set_connection(std::make_shared<Split>());
  EXPECT_THROW(fused.forward(some_tokens()), ValueError);
}

// The original; add() is the plain one of the base class.
class Counting final : public NormLayer {
 public:
  explicit Counting(std::shared_ptr<const NormLayer> original) : original_(std::move(original)) {}
  at::Tensor forward(const at::Tensor& x) const override {
    ++count;
    return original_->forward(x);
  }
  mutable int count = 0;

 private:
  std::shared_ptr<const NormLayer> original_;
};

TEST(DecoderParts, AnotherNormIsUsed) {
  for (const DecoderConfig& config : {llama(), neox()}) {
    Decoder decoder = new_decoder(config);
    const at::Tensor plain = decoder.forward(some_tokens());
    const auto first = std::make_shared<Counting>(decoder.block(1).attention_norm);
    const auto second = std::make_shared<Counting>(decoder.block(1).ffn_norm);
    decoder.block(1).attention_norm = first;
    decoder.block(1).ffn_norm = second;
    expect_close(decoder.forward(some_tokens()), plain);
    EXPECT_EQ(first->count, 1);
    EXPECT_EQ(second->count, 1);
  }
}

class Twice final : public Linear {
 public:
  explicit Twice(std::shared_ptr<const Linear> original) : original_(std::move(original)) {}
  at::Tensor forward(const at::Tensor& x) const override { return 2.0 * original_->forward(x); }

 private:
  std::shared_ptr<const Linear> original_;
};

TEST(DecoderParts, AnotherLinearLayerIsUsed) {
  Decoder decoder = new_decoder(llama());
  const at::Tensor plain = decoder.forward(some_tokens());
  LinearSlot& head = decoder.linear("lm_head");
  EXPECT_EQ(&head, &decoder.head());
  head.layer = std::make_shared<Twice>(head.layer);
  EXPECT_TRUE(at::equal(decoder.forward(some_tokens()), 2.0 * plain));
  const std::string name = "model.layers.0.mlp.down_proj";
  decoder.linear(name).layer = std::make_shared<Twice>(decoder.linear(name).layer);
  const at::Tensor got = decoder.forward(some_tokens());
  Decoder other = new_decoder(llama());
  other.set_parameter(name + ".weight", 2.0 * *other.find(Role::kDown, 0));
  expect_close(got, 2.0 * other.forward(some_tokens()));
}

TEST(DecoderParts, HooksAreCalledByNumber) {
  Decoder decoder = new_decoder(neox());
  Strings names;
  std::string order;
  const std::int64_t a = decoder.add_linear_hook(
      [&](const std::string& name, const at::Tensor&) { names.push_back(name); });
  const std::int64_t b =
      decoder.add_linear_hook([&](const std::string&, const at::Tensor&) { order += 'b'; });
  const std::int64_t c =
      decoder.add_linear_hook([&](const std::string&, const at::Tensor&) { order += 'c'; });
  EXPECT_LT(a, b);
  EXPECT_LT(b, c);
  decoder.forward(some_tokens());
  Strings wanted;
  for (const LinearSlot* slot : decoder.linears()) {
    wanted.push_back(slot->name);
  }
  EXPECT_EQ(names, wanted);
  EXPECT_EQ(names.front(), "gpt_neox.layers.0.attention.query_key_value");
  EXPECT_EQ(names.back(), "embed_out");
  EXPECT_EQ(order.substr(0, 4), "bcbc");
  decoder.remove_linear_hook(b);
  EXPECT_THROW(decoder.remove_linear_hook(b), ValueError);
  EXPECT_THROW(decoder.remove_linear_hook(99), ValueError);
  order.clear();
  decoder.forward(some_tokens());
  EXPECT_EQ(order, std::string(names.size() / 2, 'c'));
  EXPECT_GT(decoder.add_linear_hook([](const std::string&, const at::Tensor&) {}), c);
}

}  // namespace
}  // namespace paperlab::nn
