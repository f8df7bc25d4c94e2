#include "experiments/vision/training.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "paperlab/core/error.h"
#include "paperlab/data/images.h"
#include "paperlab/io/npy.h"
#include "paperlab/nn/encoder.h"
#include "paperlab/nn/encoder_load.h"
#include "paperlab/train/fit.h"

namespace paperlab::experiments::vision {
namespace {

using Arrays = std::map<std::string, io::NpyArray>;

at::Tensor tensor_of(const io::NpyArray& array, const std::string& name) {
  const auto as = [&](at::ScalarType type) {
    // from_blob() takes what it may not change.
    auto* data = const_cast<std::byte*>(array.bytes.data());  // NOLINT(*-const-cast)
    return at::from_blob(data, array.shape, at::TensorOptions(type)).clone();
  };
  switch (array.type) {
    case io::ElementType::kI32:
      return as(at::kInt).to(at::kLong);
    case io::ElementType::kF32:
      return as(at::kFloat);
    case io::ElementType::kF64:
      return as(at::kDouble);
    default:
      throw DTypeError("run.npz: " + name + " holds " + io::element_type_name(array.type));
  }
}

at::Tensor tensor_at(const Arrays& arrays, const std::string& name, std::int64_t num_dims) {
  const auto found = arrays.find(name);
  require<ValueError>(found != arrays.end(), "run.npz", "an array " + name, "none");
  at::Tensor tensor = tensor_of(found->second, name);
  require<ValueError>(tensor.dim() == num_dims, "run.npz",
                      name + " of " + std::to_string(num_dims) + " dimensions",
                      std::to_string(tensor.dim()));
  return tensor;
}

std::vector<double> numbers_at(const Arrays& arrays, const std::string& name) {
  const at::Tensor tensor = tensor_at(arrays, name, 1).to(at::kDouble);
  const auto* data = tensor.const_data_ptr<double>();
  return {data, data + tensor.numel()};
}

at::Tensor bytes_tensor(std::span<const std::uint8_t> bytes, at::IntArrayRef shape) {
  auto* data = const_cast<std::uint8_t*>(bytes.data());  // NOLINT(*-const-cast)
  return at::from_blob(data, shape, at::TensorOptions(at::kByte)).clone();
}

at::ScalarType dtype_of(const Job& job) {
  return job.dtype == "float64" ? at::kDouble : at::kFloat;
}

nn::HfEncoder load(const Config& config, const Job& job, const std::string& folder) {
  nn::HfEncoder model = nn::load_encoder(folder, dtype_of(job), false, at::Device(config.device));
  for (const auto& parameter : model.encoder->parameters().list()) {
    parameter.value->requires_grad_();
  }
  return model;
}

// In the dtype and with the operations of vit_worker.py.
at::Tensor pixels_of(const Config& config, const Job& job, const Pictures& pictures,
                     const at::Tensor& rows) {
  return pictures.pixels.index_select(0, rows)
      .to(dtype_of(job))
      .div(job.recipe->half_pixel)
      .sub(1)
      .to(at::Device(config.device));
}

at::Tensor test_logits(const Config& config, const Job& job, const Pictures& pictures,
                       const Peer& peer, const nn::Encoder& encoder) {
  constexpr std::int64_t kAtOnce = 500;
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (const at::Tensor& rows : peer.test_rows.split(kAtOnce)) {
    nn::EncoderInput input;
    input.pixels = pixels_of(config, job, pictures, rows);
    parts.push_back(encoder.forward(input).cpu());
  }
  return at::cat(parts);
}

// Biases, norms, the class token and positions do not decay.
std::vector<std::string> undecayed(const nn::Encoder& encoder) {
  std::vector<std::string> names;
  for (const auto& parameter : encoder.parameters().list()) {
    const std::string& name = parameter.spec.name;
    if (parameter.value->dim() < 2 || name.ends_with("cls_token") ||
        name.ends_with("position_embeddings")) {
      names.push_back(name);
    }
  }
  return names;
}

train::FitOptions fit_options(const Config& config, const Job& job, const Peer& peer,
                              const nn::Encoder& encoder) {
  const std::int64_t steps = peer.rows.size(0);
  const double rate = job.recipe->learning_rate;
  train::FitOptions options;
  options.schedule = {
      .kind = train::ScheduleKind::kCosine,
      .learning_rate = rate,
      .min_learning_rate = config.final_rate * rate,
      .steps = steps,
      .warmup_steps = std::llround(config.warmup_share * static_cast<double>(steps))};
  options.optimizer.beta1 = config.beta1;
  options.optimizer.beta2 = config.beta2;
  options.weight_decay = config.weight_decay;
  options.no_decay = undecayed(encoder);
  options.clip_norm = config.clip_norm;
  options.seed = job.seed;
  return options;
}

}  // namespace

Pictures open_pictures(const std::string& folder) {
  const data::ImageFolder images(folder);
  std::vector<at::Tensor> pixels;
  std::vector<at::Tensor> labels;
  for (const std::string& split : images.splits()) {
    const auto file = images.open(split);
    const std::int64_t count = file->num_images();
    pixels.push_back(bytes_tensor(file->pixels(), {count, 1, file->height(), file->width()}));
    labels.push_back(bytes_tensor(file->labels(), {count}).to(at::kLong));
  }
  return {at::cat(pixels), at::cat(labels)};
}

Peer open_peer(const std::string& folder) {
  const Arrays arrays = io::read_npz(folder + "/run.npz");
  Peer peer;
  peer.folder = folder;
  peer.rows = tensor_at(arrays, "rows", 2);
  peer.test_rows = tensor_at(arrays, "test_rows", 1);
  peer.curves.loss = numbers_at(arrays, "loss");
  peer.curves.eval_step = numbers_at(arrays, "eval_step");
  peer.curves.accuracy = numbers_at(arrays, "accuracy");
  peer.moved_loss = numbers_at(arrays, "moved_loss");
  peer.logits = tensor_at(arrays, "logits", 2);
  return peer;
}

at::Tensor hits(const at::Tensor& logits, const Pictures& pictures, const Peer& peer) {
  return logits.argmax(1).eq(pictures.labels.index_select(0, peer.test_rows));
}

Outcome train(const Config& config, const Job& job, const Pictures& pictures, const Peer& peer,
              const std::function<void()>& on_step) {
  at::set_num_threads(1);  // of the calling thread
  Outcome outcome;
  nn::HfEncoder model = load(config, job, peer.folder + "/initial");
  const std::int64_t steps = peer.rows.size(0);
  train::FitCallbacks callbacks;
  callbacks.batch = [&](std::int64_t step) {
    const at::Tensor rows = peer.rows.select(0, step);
    return train::Batch(pixels_of(config, job, pictures, rows),
                        pictures.labels.index_select(0, rows).to(at::Device(config.device)));
  };
  callbacks.on_step = [&](const train::StepRecord& record) {
    outcome.curves.loss.push_back(record.loss);
    const std::int64_t done = record.step + 1;
    if (done % job.recipe->eval_every == 0 || done == steps) {
      outcome.logits = test_logits(config, job, pictures, peer, *model.encoder);
      const at::Tensor share = hits(outcome.logits, pictures, peer).to(at::kDouble).mean();
      outcome.curves.eval_step.push_back(static_cast<double>(done));
      outcome.curves.accuracy.push_back(share.item<double>());
    }
    on_step();
    return train::StepReply();
  };
  train::fit(model, fit_options(config, job, peer, *model.encoder), callbacks);
  const nn::HfEncoder trained = load(config, job, peer.folder + "/trained");
  outcome.of_peer = test_logits(config, job, pictures, peer, *trained.encoder);
  return outcome;
}

}  // namespace paperlab::experiments::vision
