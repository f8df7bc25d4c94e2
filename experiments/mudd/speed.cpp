// Tables 4 and 7 and the speeds of Fig. 9: untrained models at the paper's shapes. Each training
// and each decoding is kept, so that a row may take several calls. Steps are launched one by one:
// there is no CUDA graph.
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "experiments/mudd/jobs.h"
#include "experiments/mudd/memory.h"
#include "paperlab/mudd/complexity.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/model.h"
#include "paperlab/train/loss.h"

namespace paperlab::experiments::mudd {

namespace lib = paperlab::mudd;

namespace {

constexpr std::int64_t kLeastBatch = 4;  // sequences that a training speed of Table 4 is of
const std::vector<std::string> kForms = {"mudd", "base"};
const std::vector<std::string> kSparseForms = {"mudd",     "base",     "mudd_2x2",
                                               "mudd_1x2", "mudd_2x1", "mudd_window"};

// A shape of Table 4.
struct Shape {
  std::int64_t num_layers;
  std::int64_t d_model;
  std::int64_t num_heads;
  std::int64_t d_ff;

  std::string name() const { return std::to_string(num_layers) + "x" + std::to_string(d_model); }
};

std::vector<Shape> shapes_of(const Config& config) {
  std::vector<Shape> shapes;
  for (std::size_t i = 0; i < config.speed_layers.size(); ++i) {
    shapes.push_back({config.speed_layers[i], config.speed_widths[i], config.speed_heads[i],
                      config.speed_ffns[i]});
  }
  return shapes;
}

lib::MuddConfig sizes_of(const Config& config, const Shape& shape, const std::string& method) {
  lib::MuddConfig sizes = model_config(config, method, {shape.num_layers, shape.d_model});
  sizes.vocab_size = config.speed_vocab;
  sizes.num_heads = shape.num_heads;
  sizes.d_ff = shape.d_ff;
  sizes.ffn_round = config.speed_ffn_round;
  return sizes;
}

at::TensorOptions options_of(const Config& config) {
  const at::ScalarType dtype = config.dtype == "bfloat16"  ? at::kBFloat16
                               : config.dtype == "float64" ? at::kDouble
                                                           : at::kFloat;
  return at::TensorOptions().dtype(dtype).device(at::Device(config.device));
}

// With random weights.
std::shared_ptr<nn::Decoder> new_decoder(const Config& config, const Shape& shape,
                                         const std::string& method, bool has_gradients) {
  constexpr double kStd = 0.02;
  const lib::MuddConfig sizes = sizes_of(config, shape, method);
  std::vector<at::Tensor> values;
  for (const nn::ParameterSpec& spec : lib::parameter_specs(sizes)) {
    values.push_back(at::randn(spec.shape, options_of(config)).mul_(kStd));
    values.back().requires_grad_(has_gradients);
  }
  return lib::make_decoder(sizes, std::move(values));
}

at::Tensor random_tokens(const Config& config, std::int64_t rows, std::int64_t length) {
  return at::randint(config.speed_vocab, {rows, length}, options_of(config).dtype(at::kLong));
}

// Seconds that `body` takes on the device.
double seconds_of(const Config& config, const std::function<void()>& body) {
  using Clock = std::chrono::steady_clock;
  const auto wait = [&config] {
    if (config.device != "cpu") {
      at::accelerator::synchronizeDevice(0);
    }
  };
  wait();
  const Clock::time_point begin = Clock::now();
  body();
  wait();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Training {
  double step_s = 0.0;  // forward and backward
  double kept = 0.0;    // bytes after the forward pass beside the weights
  double peak = 0.0;    // bytes, weights and gradients included
};

void forward_and_backward(nn::Decoder& decoder, const at::Tensor& tokens, MemoryMeter* meter,
                          double* kept) {
  const at::AutoGradMode with_gradients(true);
  const std::int64_t before = meter == nullptr ? 0 : meter->alive();
  const at::Tensor loss = train::next_token_loss(decoder, tokens);
  if (meter != nullptr) {
    *kept = static_cast<double>(meter->alive() - before);
  }
  loss.backward();
  for (const nn::Decoder::Parameter& parameter : decoder.parameters()) {
    parameter.value->mutable_grad().reset();
  }
}

Training measure_training(const Config& config, const Shape& shape, const std::string& method,
                          std::int64_t batch) {
  Training found;
  MemoryMeter meter{at::Device(config.device)};
  const std::int64_t before = meter.alive();
  const std::shared_ptr<nn::Decoder> decoder = new_decoder(config, shape, method, true);
  const at::Tensor tokens = random_tokens(config, batch, config.speed_context + 1);
  meter.reset_peak();
  forward_and_backward(*decoder, tokens, &meter, &found.kept);  // and a warm-up
  found.peak = static_cast<double>(meter.peak() - before);
  const auto repetitions = static_cast<double>(config.speed_repetitions);
  found.step_s = seconds_of(config,
                            [&] {
                              for (std::int64_t i = 0; i < config.speed_repetitions; ++i) {
                                forward_and_backward(*decoder, tokens, nullptr, nullptr);
                              }
                            }) /
                 repetitions;
  return found;
}

std::string training_key(const Shape& shape, const std::string& method) {
  return "training " + shape.name() + " " + method + ": ";
}

std::string decoding_key(const Shape& shape, const std::string& method) {
  return "decoding " + shape.name() + " " + method + ": ";
}

// With as many sequences as fit; the first method of a shape decides.
void record_training(const Config& config, Run& run, const Shape& shape,
                     const std::string& method) {
  const std::string key = training_key(shape, method);
  const std::string batch_key = "training " + shape.name() + ": sequences";
  if (run.find(key + "tokens_per_s")) {
    return;
  }
  run.begin_part(config.run_seconds);
  auto batch = static_cast<std::int64_t>(
      run.find(batch_key).value_or(static_cast<double>(config.speed_batch)));
  Training found;
  for (bool fits = false; !fits;) {
    try {
      found = measure_training(config, shape, method, batch);
      fits = true;
    } catch (const c10::OutOfMemoryError&) {
      if (batch == 1 || run.find(batch_key)) {
        throw;
      }
      batch /= 2;
      at::accelerator::emptyCache();
    }
  }
  if (!run.find(batch_key)) {
    run.scalar(batch_key, static_cast<double>(batch));
  }
  run.scalar(key + "tokens_per_s",
             static_cast<double>(batch * config.speed_context) / found.step_s);
  run.scalar(key + "bytes kept by the forward pass", found.kept);
  run.scalar(key + "bytes at the peak", found.peak);
  run.keep();
}

// Tokens a second after the prompt, batch 1, each the likeliest after the one before.
double decoding_speed(const Config& config, const nn::Decoder& decoder) {
  const at::NoGradGuard no_grad;
  double seconds = 0.0;
  for (std::int64_t i = 0; i < config.speed_repetitions; ++i) {
    const auto cache = decoder.new_cache(1, config.speed_prompt + config.speed_tokens + 1);
    nn::ForwardOptions options;
    options.cache = cache.get();
    options.last_only = true;
    options.checks_ids = false;  // which would wait for the device at each token
    const auto next = [&](const at::Tensor& tokens) {
      return at::argmax(decoder.forward(tokens, options), -1);
    };
    at::Tensor token = next(next(random_tokens(config, 1, config.speed_prompt)));  // a warm-up
    seconds += seconds_of(config, [&] {
      for (std::int64_t step = 0; step < config.speed_tokens; ++step) {
        token = next(token);
      }
    });
  }
  return static_cast<double>(config.speed_repetitions * config.speed_tokens) / seconds;
}

void record_decoding(const Config& config, Run& run, const Shape& shape,
                     const std::string& method) {
  const std::string key = decoding_key(shape, method) + "tokens_per_s";
  if (run.find(key)) {
    return;
  }
  run.begin_part(config.run_seconds);
  run.scalar(key, decoding_speed(config, *new_decoder(config, shape, method, false)));
  run.keep();
}

double ratio(const Run& run, const std::string& of, const std::string& by) {
  return run.value_of(of) / run.value_of(by);
}

double training_ratio(const Run& run, const Shape& shape, const std::string& method) {
  return ratio(run, training_key(shape, method) + "tokens_per_s",
               training_key(shape, "base") + "tokens_per_s");
}

double decoding_ratio(const Run& run, const Shape& shape, const std::string& method) {
  return ratio(run, decoding_key(shape, method) + "tokens_per_s",
               decoding_key(shape, "base") + "tokens_per_s");
}

bool is_of_table4(const Run& run, const Shape& shape) {
  return run.value_of("training " + shape.name() + ": sequences") >= kLeastBatch;
}

// Weights and the keys and values of the prompt in 16 bit, read at 4.8 TB/s; milliseconds.
double floor_of_a_token(const Config& config, const Shape& shape) {
  constexpr double kBytesAMillisecond = 4.8e9;
  double numbers = static_cast<double>(2 * shape.num_layers * config.speed_prompt * shape.d_model);
  for (const nn::ParameterSpec& spec : lib::parameter_specs(sizes_of(config, shape, "base"))) {
    double size = 1.0;
    for (const std::int64_t n : spec.shape) {
      size *= static_cast<double>(n);
    }
    numbers += size;
  }
  return 2.0 * numbers / kBytesAMillisecond;
}

// The part of the speed that 1x1 loses to base which `method` has again; base's speed is 1.
double recovered(double method, double whole) { return (method - whole) / (1.0 - whole); }

}  // namespace

void table4_decoding(const Config& config, Run& run) {
  constexpr std::array<const char*, 3> kClaims = {"C10a", "C10b", "C10c"};
  const std::vector<Shape> shapes = shapes_of(config);
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    for (const std::string& method : kForms) {
      record_decoding(config, run, shapes[i], method);
    }
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    run.scalar("Table 4 least time of a token of base, ms, " + shapes[i].name(),
               floor_of_a_token(config, shapes[i]));
    run.scalar("Table 4 decoding, mudd by base, " + shapes[i].name() + ": ratio_s",
               decoding_ratio(run, shapes[i], "mudd"));
    if (i < kClaims.size()) {
      run.claim(kClaims.at(i), decoding_ratio(run, shapes[i], "mudd"));
    }
  }
}

void table4_training(const Config& config, Run& run) {
  constexpr std::array<const char*, 3> kClaims = {"C10d", "C10e", "C10f"};
  const std::vector<Shape> shapes = shapes_of(config);
  for (const Shape& shape : shapes) {
    for (const std::string& method : kForms) {
      record_training(config, run, shape, method);
    }
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    run.scalar("Table 4 training, mudd by base, " + shapes[i].name() + ": ratio_s",
               training_ratio(run, shapes[i], "mudd"));
    if (i < kClaims.size() && is_of_table4(run, shapes[i])) {
      run.claim(kClaims.at(i), training_ratio(run, shapes[i], "mudd"));
    }
  }
}

void table7(const Config& config, Run& run) {
  constexpr std::array<const char*, 3> kClaims = {"C10g", "C10h", "C10i"};
  const std::vector<Shape> shapes = shapes_of(config);
  double farthest = 0.0;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const Shape& shape = shapes[i];
    for (const std::string& method : kForms) {
      record_training(config, run, shape, method);
    }
    const auto extra = [&](const std::string& what) {
      return ratio(run, training_key(shape, "mudd") + what, training_key(shape, "base") + what) -
             1.0;
    };
    const double peak = extra("bytes at the peak");
    const double activations = extra("bytes kept by the forward pass");
    const double formula =
        lib::complexity(shape.num_layers, shape.d_model, config.speed_context, shape.num_heads)
            .memory_ratio_mudd.value_or(NAN);
    const std::string name = "Table 7 percent more memory, " + shape.name() + ": ";
    run.scalar(name + "at the peak", 100.0 * peak);
    run.scalar(name + "activations", 100.0 * activations);
    run.scalar(name + "formula", 100.0 * formula);
    farthest = std::max(farthest, std::abs(activations - formula));
    if (i < kClaims.size()) {
      run.claim(kClaims.at(i), peak);
    }
  }
  run.claim("C10j", farthest);
}

void figure9_speed(const Config& config, Run& run) {
  const Shape shape = shapes_of(config).front();
  std::vector<double> loss;
  std::vector<double> training;
  std::vector<double> decoding;
  for (const std::string& method : kSparseForms) {
    record_training(config, run, shape, method);
    record_decoding(config, run, shape, method);
  }
  for (const std::string& method : kSparseForms) {
    training.push_back(training_ratio(run, shape, method));
    decoding.push_back(decoding_ratio(run, shape, method));
    loss.push_back(run.find("mean loss " + method).value_or(NAN));
  }
  run.series(
      "Fig. 9 speed",
      {{"loss", loss}, {"relative_training_s", training}, {"relative_decoding_s", decoding}});
  enum : std::uint8_t { kWhole = 0, k2x2 = 2, kWindow = 5 };
  run.claim("C16d", recovered(training[k2x2], training[kWhole]));
  run.claim("C16e", recovered(decoding[k2x2], decoding[kWhole]));
  run.claim("C16f",
            std::max(training[kWindow] / training[k2x2], decoding[kWindow] / decoding[k2x2]));
}

}  // namespace paperlab::experiments::mudd
