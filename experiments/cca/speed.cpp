// Speed and memory at the paper's shapes on the device of the configuration: attention alone, and a
// whole decoder with random weights. Each length and method is kept.
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "experiments/cca/attentions.h"
#include "experiments/cca/rows.h"
#include "paperlab/cca/attention.h"
#include "paperlab/cca/baselines.h"
#include "paperlab/cca/cost.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::experiments::cca {

namespace lib = paperlab::cca;

namespace {

constexpr double kStd = 0.02;

at::TensorOptions options_of(const Config& config) {
  const at::ScalarType dtype = config.speed_dtype == "bfloat16"  ? at::kBFloat16
                               : config.speed_dtype == "float64" ? at::kDouble
                                                                 : at::kFloat;
  return at::TensorOptions().dtype(dtype).device(at::Device(config.device));
}

lib::Options core_of(const Config& config) {
  lib::Options options;
  options.group_size = config.group_size;
  options.window = config.window;
  return options;
}

// Median seconds of `body` on the device, after one call that is not counted.
double seconds_of(const Config& config, const std::function<void()>& body) {
  using Clock = std::chrono::steady_clock;
  const auto wait = [&config] {
    if (config.device != "cpu") {
      at::accelerator::synchronizeDevice(0);
    }
  };
  body();
  std::vector<double> seconds;
  seconds.reserve(static_cast<std::size_t>(config.speed_repetitions));
  for (std::int64_t i = 0; i < config.speed_repetitions; ++i) {
    wait();
    const Clock::time_point begin = Clock::now();
    body();
    wait();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

std::string prefill_key(std::int64_t length, const std::string& method) {
  return "prefill of attention, " + std::to_string(length) + " tokens, " + method + "_s";
}

constexpr char kFull[] = "full";  // LibTorch's
constexpr char kOurFull[] = "our full";
constexpr char kCore[] = "CCA";

void attend(const Config& config, const std::string& method, const std::vector<at::Tensor>& in) {
  if (method == kFull) {
    at::scaled_dot_product_attention(in[0], in[1], in[2], {}, 0.0, true);
  } else if (method == kOurFull) {
    lib::baselines::full(in[0], in[1], in[2]);
  } else {
    lib::attention(in[0], in[1], in[2], core_of(config));
  }
}

void record_prefill(const Config& config, Run& run, std::int64_t length,
                    const std::string& method) {
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> shape = {1, config.speed_heads, length, config.speed_head_dim};
  std::vector<at::Tensor> in;
  in.reserve(3);
  for (int i = 0; i < 3; ++i) {
    in.push_back(at::randn(shape, options_of(config)));
  }
  if (method == kFull) {
    run.scalar("prefill of attention, " + std::to_string(length) +
                   " tokens: LibTorch's path (0 plain, 1 flash, 2 memory-efficient, 3 cuDNN)",
               static_cast<double>(at::_fused_sdp_choice(in[0], in[1], in[2], {}, 0.0, true)));
  }
  run.scalar(prefill_key(length, method), seconds_of(config, [&] { attend(config, method, in); }));
  run.keep();
}

// LLaMA2's architecture with random weights.
std::shared_ptr<nn::Decoder> new_decoder(const Config& config) {
  nn::DecoderConfig sizes;
  sizes.vocab_size = config.speed_vocab;
  sizes.num_layers = config.speed_layers;
  sizes.num_heads = sizes.num_kv_heads = config.speed_heads;
  sizes.head_dim = config.speed_head_dim;
  sizes.d_model = config.speed_heads * config.speed_head_dim;
  sizes.d_ff = config.speed_ffn;
  sizes.max_positions = config.speed_lengths.back() + config.speed_tokens + 1;
  sizes.rope.rotary_dim = sizes.head_dim;
  sizes.rope.max_positions = sizes.max_positions;
  std::vector<at::Tensor> values;
  for (const nn::ParameterSpec& spec : nn::parameter_specs(sizes, nn::Family::kLlama)) {
    values.push_back(at::randn(spec.shape, options_of(config)).mul_(kStd));
  }
  return std::make_shared<nn::Decoder>(sizes, nn::Family::kLlama, std::move(values));
}

std::string decoder_key(std::int64_t length, const std::string& method, const std::string& what) {
  return "decoder, " + std::to_string(length) + " tokens, " + method + ": " + what;
}

// The first token after a prompt, and each of the next ones.
void record_decoder(const Config& config, Run& run, const nn::Decoder& decoder, std::int64_t length,
                    const std::string& method) {
  const at::NoGradGuard no_grad;
  const at::Tensor prompt =
      at::randint(config.speed_vocab, {1, length}, options_of(config).dtype(at::kLong));
  nn::ForwardOptions options;
  options.last_only = true;
  options.checks_ids = false;  // which would wait for the device at each token
  std::unique_ptr<nn::Cache> cache;
  at::Tensor token;
  const double first_s = seconds_of(config, [&] {
    cache.reset();
    cache = decoder.new_cache(1, length + config.speed_tokens + 1);
    options.cache = cache.get();
    token = at::argmax(decoder.forward(prompt, options), -1);
  });
  run.scalar(decoder_key(length, method, "first_token_s"), first_s);
  run.scalar(decoder_key(length, method, "bytes of the cache"),
             static_cast<double>(cache->num_bytes()));
  const std::int64_t steps =
      std::max<std::int64_t>(1, config.speed_tokens / (config.speed_repetitions + 1));
  const double next_s = seconds_of(config, [&] {
    for (std::int64_t i = 0; i < steps; ++i) {
      token = at::argmax(decoder.forward(token, options), -1);
    }
  });
  run.scalar(decoder_key(length, method, "next_token_s"), next_s / static_cast<double>(steps));
  run.keep();
}

double ratio(const Run& run, const std::string& of, const std::string& by) {
  return run.value_of(of) / run.value_of(by);
}

}  // namespace

void prefill_speed(const Config& config, Run& run) {
  for (const std::int64_t length : config.speed_lengths) {
    for (const char* method : {kFull, kOurFull, kCore}) {
      if (!run.find(prefill_key(length, method))) {
        run.begin_part(config.speed_part_s);
        record_prefill(config, run, length, method);
      }
    }
  }
  constexpr const char* kClaims[] = {"C4g", "C4h", "C4i"};  // the longest first
  std::vector<double> lengths;
  std::vector<double> speed_up;
  std::vector<double> over_ours;
  for (const std::int64_t length : config.speed_lengths) {
    lengths.push_back(static_cast<double>(length));
    speed_up.push_back(ratio(run, prefill_key(length, kFull), prefill_key(length, kCore)));
    over_ours.push_back(ratio(run, prefill_key(length, kOurFull), prefill_key(length, kCore)));
  }
  run.series(
      "prefill of attention",
      {{"length", lengths}, {"speed_up_s", speed_up}, {"speed_up_over_our_full_s", over_ours}});
  for (std::size_t i = 0; i < std::min(speed_up.size(), std::size(kClaims)); ++i) {
    run.claim(kClaims[i], speed_up[speed_up.size() - 1 - i]);
  }
}

void decoder_speed(const Config& config, Run& run) {
  const auto decoder = new_decoder(config);
  const std::vector<std::int64_t>& lengths = config.speed_lengths;
  for (const Method& method :
       {full_method(), core_method("CCA", config.group_size, config.window)}) {
    use(*decoder, method);
    for (const std::int64_t length : lengths) {
      if (!run.find(decoder_key(length, method.name, "next_token_s"))) {
        run.begin_part(config.speed_part_s);
        record_decoder(config, run, *decoder, length, method.name);
      }
    }
  }
  const auto key = [&](std::int64_t length, const char* method, const char* what) {
    return decoder_key(length, method, what);
  };
  const std::int64_t least = lengths.front();
  const std::int64_t most = lengths.back();
  run.claim("C4j",
            ratio(run, key(most, "full", "first_token_s"), key(most, "CCA", "first_token_s")));
  run.claim("C11e",
            ratio(run, key(most, "CCA", "next_token_s"), key(least, "CCA", "next_token_s")));
  run.claim("C11f",
            ratio(run, key(most, "full", "next_token_s"), key(most, "CCA", "next_token_s")));
  const lib::AttentionShape shape{
      .heads = config.speed_heads,
      .head_dim = config.speed_head_dim,
      .layers = config.speed_layers,
      .bytes_per_element = static_cast<std::int64_t>(options_of(config).dtype().itemsize())};
  const lib::Cost cost = lib::cost(most, core_of(config), shape);
  run.claim("C6e", run.value_of(key(most, "CCA", "bytes of the cache")) /
                       static_cast<double>(cost.cache_bytes));
  for (const std::int64_t length : lengths) {
    run.scalar(
        "decoder, " + std::to_string(length) + " tokens: GiB of full attention's cache less CCA's",
        (run.value_of(key(length, "full", "bytes of the cache")) -
         run.value_of(key(length, "CCA", "bytes of the cache"))) /
            1073741824.0);
  }
}

}  // namespace paperlab::experiments::cca
