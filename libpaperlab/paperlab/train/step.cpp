#include <ATen/core/grad_mode.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/isfinite.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/train/loss.h"
#include "paperlab/train/number_text_internal.h"
#include "paperlab/train/shard.h"
#include "paperlab/train/step_internal.h"
#include "paperlab/train/trained_internal.h"

namespace paperlab::train {

// While this lives, the decoder computes with bfloat16 copies of its parameters, through which
// gradients flow to the parameters.
class HalfParameters {
 public:
  explicit HalfParameters(const nn::Decoder& decoder) : decoder_(decoder) {
    for (const auto& parameter : decoder_.parameters()) {
      own_.push_back(*parameter.value);
      *parameter.value = parameter.value->to(at::kBFloat16);
    }
  }
  ~HalfParameters() {
    for (std::size_t i = 0; i < own_.size(); ++i) {
      *decoder_.parameters()[i].value = own_[i];
    }
  }
  HalfParameters(const HalfParameters&) = delete;
  HalfParameters& operator=(const HalfParameters&) = delete;

 private:
  const nn::Decoder& decoder_;
  std::vector<at::Tensor> own_;
};

namespace {

// What a process tells the others of its part of a step.
enum Told : std::uint8_t { kFailed, kLoss, kRows, kColumns, kTokens, kNumTold };

std::vector<std::int64_t> owners_of(const std::vector<Trained>& trained, std::int64_t size) {
  std::vector<std::int64_t> sizes;
  sizes.reserve(trained.size());
  for (const Trained& parameter : trained) {
    sizes.push_back(parameter.value.numel());
  }
  return plan_owners(sizes, size);
}

std::vector<at::Tensor> values_of(const std::vector<Trained>& trained) {
  std::vector<at::Tensor> values;
  values.reserve(trained.size());
  for (const Trained& parameter : trained) {
    values.push_back(parameter.value);
  }
  return values;
}

std::vector<std::string> names_of(const std::vector<Trained>& trained) {
  std::vector<std::string> names;
  names.reserve(trained.size());
  for (const Trained& parameter : trained) {
    names.push_back(parameter.name);
  }
  return names;
}

bool is_finite(const at::Tensor& x) { return at::isfinite(x).all().item<bool>(); }

// The first parameter, else the first layer's input, that is not finite.
std::string first_bad_tensor(nn::Decoder& decoder, const at::Tensor& batch) {
  for (const auto& parameter : decoder.parameters()) {
    if (!is_finite(*parameter.value)) {
      return "parameter '" + parameter.spec.name + "'";
    }
  }
  const at::NoGradGuard no_grad;
  std::string bad = "the logits";
  bool is_found = false;
  const std::int64_t hook =
      decoder.add_linear_hook([&](const std::string& name, const at::Tensor& x) {
        if (!is_found && !is_finite(x)) {
          is_found = true;
          bad = "the input of '" + name + "'";
        }
      });
  decoder.forward(batch.narrow(1, 0, batch.size(1) - 1));
  decoder.remove_linear_hook(hook);
  return bad;
}

// FNV-1a over the tokens, folded to a whole number that a double holds.
double fingerprint(const at::Tensor& batch) {
  const at::Tensor tokens = batch.cpu().contiguous();
  const auto* first = tokens.const_data_ptr<std::int64_t>();
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    hash = (hash ^ static_cast<std::uint64_t>(first[i])) * 0x100000001b3ULL;
  }
  return static_cast<double>(hash >> 12U);
}

}  // namespace

Stepper::Stepper(nn::HfDecoder& model, const FitOptions& options, const FitCallbacks& callbacks,
                 const Agreement& agreement)
    : model_(model),
      options_(options),
      callbacks_(callbacks),
      agreement_(agreement),
      trained_(trained_parameters(*model.decoder, options)),
      owners_(owners_of(trained_, agreement.size())),
      optimizer_(make_optimizer(owned_by(agreement.rank()), options.optimizer)) {
  if (!agreement_.is_alone()) {
    buckets_ = std::make_unique<GradientBuckets>(values_of(trained_), options.processes,
                                                 options.bucket_bytes);
  }
}

Stepper::~Stepper() {
  if (has_begun_) {
    clear_gradients();
  }
}

// Without shards each process has the state of all.
std::vector<Trained> Stepper::owned_by(std::int64_t process) const {
  std::vector<Trained> owned;
  for (std::size_t i = 0; i < trained_.size(); ++i) {
    if (!is_sharded() || owners_[i] == process) {
      owned.push_back(trained_[i]);
    }
  }
  return owned;
}

// Autograd keeps the batch, which it does not do in inference mode.
at::Tensor Stepper::batch_of(std::int64_t step) const {
  const at::Tensor given = callbacks_.batch(step);
  check_batch(given, step);
  const at::Tensor batch = given.to(trained_.front().value.device());
  return batch.is_inference() ? batch.clone() : batch;
}

// The last tokens of the rows are never read by the decoder, which would check them.
void Stepper::check_batch(const at::Tensor& batch, std::int64_t step) const {
  const std::string source = "data(" + std::to_string(step) + ") must ";
  const bool is_shaped = batch.defined() && batch.dim() == 2 && batch.size(0) >= 1;
  require<ValueError>(is_shaped && batch.size(1) >= 2, kFunction,
                      source + "return [B, T + 1] with B, T >= 1",
                      batch.defined() ? c10::str(batch.sizes()) : "nothing");
  const nn::DecoderConfig& config = model_.decoder->config();
  require<ValueError>(batch.size(1) - 1 <= config.max_positions, kFunction,
                      source + "return at most max_position_embeddings + 1 (" +
                          std::to_string(config.max_positions + 1) + ") tokens a row",
                      std::to_string(batch.size(1)));
  const auto [low, high] = at::aminmax(batch.cpu());
  const auto id = (low.item<std::int64_t>() < 0 ? low : high).item<std::int64_t>();
  require<ValueError>(
      id >= 0 && id < config.vocab_size, kFunction,
      source + "return tokens in 0..vocab_size - 1 (" + std::to_string(config.vocab_size - 1) + ")",
      std::to_string(id));
  const std::int64_t rows = batch.size(0);
  const std::string times =
      agreement_.is_alone() ? "" : " times the " + std::to_string(agreement_.size()) + " processes";
  require<ValueError>(
      rows % options_.accumulate == 0 && rows / options_.accumulate % agreement_.size() == 0,
      kFunction,
      "accumulate" + times + " must divide the batch's rows (" + std::to_string(rows) + ")",
      std::to_string(options_.accumulate));
}

StepRecord Stepper::operator()(std::int64_t step, at::Tensor batch) {
  StepRecord record;
  record.step = step;
  record.learning_rate = learning_rate(options_.schedule, step);
  record.loss = gradients(step, std::move(batch));
  std::vector<at::Tensor> found;
  for (const Trained& parameter : trained_) {
    if (parameter.value.grad().defined()) {
      found.push_back(parameter.value.grad());
    }
  }
  record.grad_norm = clip_gradients(found, options_.clip_norm);
  if (!std::isfinite(record.grad_norm)) {
    refuse_gradients(step);  // the same sums in all processes
  }
  optimizer_->step(record.learning_rate);
  copy_changes();
  clear_gradients();
  return record;
}

// Sets the gradients of the mean over the global batch; returns that mean.
double Stepper::gradients(std::int64_t step, at::Tensor batch) {
  const double num_parts =
      static_cast<double>(options_.accumulate) * static_cast<double>(agreement_.size());
  if (agreement_.is_alone()) {
    return own_gradients(step, batch.defined() ? batch : batch_of(step)) / num_parts;
  }
  const auto size = static_cast<std::size_t>(agreement_.size());
  std::vector<double> told(kNumTold * size + trained_.size(), 0.0);
  double* own = &told[kNumTold * static_cast<std::size_t>(agreement_.rank())];
  std::exception_ptr failure;
  buckets_->begin();
  try {
    if (!batch.defined()) {
      batch = batch_of(step);
    }
    own[kRows] = static_cast<double>(batch.size(0));
    own[kColumns] = static_cast<double>(batch.size(1));
    own[kTokens] = fingerprint(batch);
    const std::int64_t rows = batch.size(0) / agreement_.size();
    own[kLoss] = own_gradients(step, batch.narrow(0, agreement_.rank() * rows, rows));
  } catch (const LostProcess&) {
    throw;
  } catch (...) {
    failure = std::current_exception();
    own[kFailed] = 1.0;
  }
  buckets_->finish();
  const std::vector<bool>& found = buckets_->found();
  std::copy(found.begin(), found.end(),
            told.begin() + static_cast<std::ptrdiff_t>(kNumTold * size));
  told = agreement_.sum(told);
  double loss = 0.0;
  double num_failed = 0.0;
  for (std::size_t i = 0; i < size; ++i) {  // in order: the same bits everywhere
    loss += told[kNumTold * i + kLoss];
    num_failed += told[kNumTold * i + kFailed];
  }
  if (num_failed > 0.0) {
    agreement_.fail(failure);
  }
  check_same_batch(step, told);
  buckets_->assign(std::span(told).subspan(kNumTold * size));
  return loss / num_parts;
}

void Stepper::check_same_batch(std::int64_t step, const std::vector<double>& told) const {
  for (std::size_t i = 1; i < static_cast<std::size_t>(agreement_.size()); ++i) {
    for (const Told what : {kRows, kColumns, kTokens}) {
      require<ValueError>(
          told[kNumTold * i + what] == told[what], kFunction,
          "data(" + std::to_string(step) + ") must return the same global batch in every process",
          "another one in process " + std::to_string(i));
    }
  }
}

// Sets the gradients of the mean over `rows`, divided by the number of processes; returns the sum
// of the means of its parts. In several processes they are on their way to the others.
double Stepper::own_gradients(std::int64_t step, const at::Tensor& rows) {
  has_begun_ = true;
  clear_gradients();
  const at::AutoGradMode with_gradients(true);
  const std::vector<at::Tensor> parts = rows.chunk(options_.accumulate, 0);
  const std::int64_t num_parts = options_.accumulate * agreement_.size();
  double sum = 0.0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::optional<HalfParameters> half = in_half();
    const at::Tensor loss = next_token_loss(*model_.decoder, parts[i]);
    const auto value = loss.item<double>();
    if (!std::isfinite(value)) {
      throw ValueError(std::string(kFunction) + ": step " + std::to_string(step) +
                       ": the loss must be finite, got " + number_text(value) + "; " +
                       first_bad_tensor(*model_.decoder, parts[i]) + " is the first that is not");
    }
    sum += value;
    if (buckets_ && i + 1 == parts.size()) {
      buckets_->arm();
    }
    (num_parts == 1 ? loss : loss.div(static_cast<double>(num_parts))).backward();
  }
  return sum;
}

std::optional<HalfParameters> Stepper::in_half() const {
  return options_.computes_in_bfloat16
             ? std::optional<HalfParameters>(std::in_place, *model_.decoder)
             : std::nullopt;
}

void Stepper::refuse_gradients(std::int64_t step) const {
  std::string name = "their norm overflows";
  for (const Trained& parameter : trained_) {
    const at::Tensor& grad = parameter.value.grad();
    if (grad.defined() && !is_finite(grad)) {
      name = "that of '" + parameter.name + "' is the first that is not";
      break;
    }
  }
  throw ValueError(std::string(kFunction) + ": step " + std::to_string(step) +
                   ": gradients must be finite; " + name);
}

void Stepper::clear_gradients() {
  for (Trained& parameter : trained_) {
    parameter.value.mutable_grad().reset();
  }
}

// What each process's optimizer has changed, to the others.
void Stepper::copy_changes() {
  for (std::int64_t process = 0; is_sharded() && process < agreement_.size(); ++process) {
    copy_from(agreement_, process, values_of(owned_by(process)), options_.bucket_bytes);
  }
}

void Stepper::copy_parameters_of_first() {
  std::vector<at::Tensor> values;
  for (const auto& parameter : model_.decoder->parameters()) {
    values.push_back(*parameter.value);
  }
  copy_from(agreement_, 0, values, options_.bucket_bytes);
}

NamedState Stepper::state() const {
  return is_sharded() ? gathered_state(agreement_, optimizer_->state()) : optimizer_->state();
}

void Stepper::load_state(const NamedState& state) {
  const NamedState own =
      agreement_.is_alone()
          ? state
          : scattered_state(agreement_, state, names_of(owned_by(agreement_.rank())),
                            names_of(trained_));
  agreement_.together([&] {
    optimizer_->load_state(own);
    return 0.0;
  });
}

void Stepper::check_parameters(std::int64_t step) const {
  for (const Trained& parameter : trained_) {
    if (!is_finite(parameter.value)) {
      throw ValueError(std::string(kFunction) + ": step " + std::to_string(step) +
                       ": parameters must be finite; '" + parameter.name +
                       "' is the first that is not");
    }
  }
}

}  // namespace paperlab::train
