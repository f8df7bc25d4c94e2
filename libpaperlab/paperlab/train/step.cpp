#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <exception>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/train/number_text_internal.h"
#include "paperlab/train/shard.h"
#include "paperlab/train/step_internal.h"
#include "paperlab/train/trained_internal.h"

namespace paperlab::train {

// While this lives, the model computes with bfloat16 copies of its parameters, through which
// gradients flow to the parameters.
class HalfParameters {
 public:
  explicit HalfParameters(const Model& model) : model_(model) {
    std::vector<at::Tensor> halves;  // all are there before the first takes its place
    for (const auto& parameter : model_.parameters()) {
      own_.push_back(*parameter.value);
      halves.push_back(parameter.value->to(at::kBFloat16));
    }
    put(halves);
  }
  ~HalfParameters() { put(own_); }
  HalfParameters(const HalfParameters&) = delete;
  HalfParameters& operator=(const HalfParameters&) = delete;

 private:
  void put(const std::vector<at::Tensor>& values) noexcept {
    for (std::size_t i = 0; i < values.size(); ++i) {
      *model_.parameters()[i].value = values[i];
    }
  }

  const Model& model_;
  std::vector<at::Tensor> own_;
};

namespace {

// What a process tells the others of its part of a step.
enum Told : std::uint8_t { kFailed, kLoss, kBatch, kNumTold };

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
std::string first_bad_tensor(Model& model, const Batch& batch) {
  for (const auto& parameter : model.parameters()) {
    if (!is_finite(*parameter.value)) {
      return "parameter '" + parameter.spec.name + "'";
    }
  }
  std::string bad = "the logits";
  bool is_found = false;
  model.watch(batch, [&](const std::string& name, const at::Tensor& x) {
    if (!is_found && !is_finite(x)) {
      is_found = true;
      bad = "the input of '" + name + "'";
    }
  });
  return bad;
}

// The same of each tensor of a batch that is there.
template <class F>
Batch each(const Batch& batch, const F& function) {
  const auto apply = [&](const at::Tensor& x) { return x.defined() ? function(x) : x; };
  return {apply(batch.rows), apply(batch.labels), apply(batch.attention_mask),
          apply(batch.token_type_ids)};
}

Batch rows_of(const Batch& batch, std::int64_t first, std::int64_t count) {
  return each(batch, [&](const at::Tensor& x) { return x.narrow(0, first, count); });
}

constexpr std::uint64_t kNoHash = 0xcbf29ce484222325ULL;

std::uint64_t hashed(std::uint64_t hash, std::uint64_t word) {
  return (hash ^ word) * 0x100000001b3ULL;
}

std::uint64_t hashed(std::uint64_t hash, const at::Tensor& tensor) {
  hash = hashed(hash, static_cast<std::uint64_t>(tensor.scalar_type()));
  for (const std::int64_t size : tensor.sizes()) {
    hash = hashed(hash, static_cast<std::uint64_t>(size));
  }
  const at::Tensor dense = tensor.cpu().contiguous();
  const auto* bytes = static_cast<const char*>(dense.const_data_ptr());
  for (std::size_t i = 0; i < dense.nbytes(); i += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + i, std::min(sizeof(word), dense.nbytes() - i));
    hash = hashed(hash, word);
  }
  return hash;
}

// FNV-1a over all tensors, their types and shapes, folded to a whole number that a double holds.
double fingerprint(const Batch& batch) {
  std::uint64_t hash = kNoHash;
  for (const at::Tensor& tensor :
       {batch.rows, batch.labels, batch.attention_mask, batch.token_type_ids}) {
    hash = tensor.defined() ? hashed(hash, tensor) : hashed(hash, ~std::uint64_t{0});
  }
  return static_cast<double>(hash >> 12U);
}

// `told` has one number of each process.
void require_same(std::int64_t step, const std::vector<double>& told) {
  for (std::size_t i = 1; i < told.size(); ++i) {
    require<ValueError>(
        told[i] == told[0], kFunction,
        "data(" + std::to_string(step) + ") must return the same global batch in every process",
        "another one in process " + std::to_string(i));
  }
}

}  // namespace

Stepper::Stepper(Model& model, const FitOptions& options, const FitCallbacks& callbacks,
                 const Agreement& agreement)
    : model_(model),
      options_(options),
      callbacks_(callbacks),
      agreement_(agreement),
      trained_(trained_parameters(model, options)),
      owners_(owners_of(trained_, agreement.size())),
      optimizer_(make_optimizer(owned_by(agreement.rank()), options.optimizer)) {
  if (!agreement_.is_alone()) {
    buckets_ = std::make_unique<GradientBuckets>(values_of(trained_), options.processes,
                                                 options.bucket_bytes);
  }
  for (std::int64_t process = 0; is_sharded() && process < agreement_.size(); ++process) {
    changes_.push_back(values_of(owned_by(process)));
    const at::Tensor room =
        changes_.back().empty() ? at::Tensor() : room_for(changes_.back(), options.bucket_bytes);
    if (room.defined() && (!room_.defined() || room.numel() > room_.numel())) {
      room_ = room;
    }
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
Batch Stepper::batch_of(std::int64_t step) const {
  const Batch given = callbacks_.batch(step);
  model_.check(given, "data(" + std::to_string(step) + ") must ");
  check_rows(given.rows.size(0));
  const at::Device device = trained_.front().value.device();
  return each(given, [&](const at::Tensor& x) {
    const at::Tensor batch = x.detach().to(device);
    return batch.is_inference() ? batch.clone() : batch;
  });
}

void Stepper::check_rows(std::int64_t rows) const {
  const std::string times =
      agreement_.is_alone() ? "" : " times the " + std::to_string(agreement_.size()) + " processes";
  require<ValueError>(
      rows % options_.accumulate == 0 && rows / options_.accumulate % agreement_.size() == 0,
      kFunction,
      "accumulate" + times + " must divide the batch's rows (" + std::to_string(rows) + ")",
      std::to_string(options_.accumulate));
}

void Stepper::check_same(std::int64_t step, const Batch& batch) const {
  std::vector<double> told(static_cast<std::size_t>(agreement_.size()), 0.0);
  told[static_cast<std::size_t>(agreement_.rank())] = fingerprint(batch);
  require_same(step, agreement_.sum(told));
}

StepRecord Stepper::gradients(std::int64_t step, Batch batch) {
  StepRecord record;
  record.step = step;
  record.learning_rate = learning_rate(options_.schedule, step);
  record.loss = loss(step, std::move(batch));
  return record;
}

void Stepper::update(StepRecord& record) {
  if (buckets_) {
    buckets_->assign(counts_);
  }
  std::vector<at::Tensor> found;
  for (const Trained& parameter : trained_) {
    if (parameter.value.grad().defined()) {
      found.push_back(parameter.value.grad());
    }
  }
  record.grad_norm = clip_gradients(found, options_.clip_norm);
  if (!std::isfinite(record.grad_norm)) {
    refuse_gradients(record.step);  // the same sums in all processes
  }
  optimizer_->step(record.learning_rate);
}

void Stepper::end_step() {
  for (std::size_t process = 0; process < changes_.size(); ++process) {
    copy_from(agreement_, static_cast<std::int64_t>(process), changes_[process],
              options_.bucket_bytes, room_);
  }
  clear_gradients();
}

// Sets the gradients of the mean over the global batch; returns that mean.
double Stepper::loss(std::int64_t step, Batch batch) {
  const double num_parts =
      static_cast<double>(options_.accumulate) * static_cast<double>(agreement_.size());
  if (agreement_.is_alone()) {
    return own_gradients(step, batch.rows.defined() ? batch : batch_of(step)) / num_parts;
  }
  const auto size = static_cast<std::size_t>(agreement_.size());
  std::vector<double> told(kNumTold * size + trained_.size(), 0.0);
  double* own = &told[kNumTold * static_cast<std::size_t>(agreement_.rank())];
  std::exception_ptr failure;
  buckets_->begin();
  try {
    if (!batch.rows.defined()) {
      batch = batch_of(step);
    }
    own[kBatch] = fingerprint(batch);
    const std::int64_t rows = batch.rows.size(0) / agreement_.size();
    own[kLoss] = own_gradients(step, rows_of(batch, agreement_.rank() * rows, rows));
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
  double sum = 0.0;
  double num_failed = 0.0;
  std::vector<double> batches;
  for (std::size_t i = 0; i < size; ++i) {  // in order: the same bits everywhere
    sum += told[kNumTold * i + kLoss];
    num_failed += told[kNumTold * i + kFailed];
    batches.push_back(told[kNumTold * i + kBatch]);
  }
  if (num_failed > 0.0) {
    agreement_.fail(failure);
  }
  require_same(step, batches);
  counts_.assign(told.begin() + static_cast<std::ptrdiff_t>(kNumTold * size), told.end());
  return sum / num_parts;
}

// Sets the gradients of the mean over `rows`, divided by the number of processes; returns the sum
// of the means of its parts. In several processes they are on their way to the others.
double Stepper::own_gradients(std::int64_t step, const Batch& rows) {
  has_begun_ = true;
  clear_gradients();
  const at::AutoGradMode with_gradients(true);
  const std::int64_t num_parts = options_.accumulate * agreement_.size();
  const std::int64_t count = rows.rows.size(0) / options_.accumulate;
  double sum = 0.0;
  for (std::int64_t i = 0; i < options_.accumulate; ++i) {
    const Batch part = rows_of(rows, i * count, count);
    const std::optional<HalfParameters> half = in_half();
    const at::Tensor loss = model_.loss(part);
    const auto value = loss.item<double>();
    if (!std::isfinite(value)) {
      throw ValueError(std::string(kFunction) + ": step " + std::to_string(step) +
                       ": the loss must be finite, got " + number_text(value) + "; " +
                       first_bad_tensor(model_, part) + " is the first that is not");
    }
    sum += value;
    if (buckets_ && i + 1 == options_.accumulate) {
      buckets_->arm();
    }
    (num_parts == 1 ? loss : loss.div(static_cast<double>(num_parts))).backward();
  }
  return sum;
}

std::optional<HalfParameters> Stepper::in_half() const {
  return options_.computes_in_bfloat16 ? std::optional<HalfParameters>(std::in_place, model_)
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

void Stepper::copy_parameters_of_first() {
  if (agreement_.is_alone()) {
    return;
  }
  std::vector<at::Tensor> values;
  at::Tensor room;
  agreement_.together([&] {
    for (const auto& parameter : model_.parameters()) {
      values.push_back(*parameter.value);
    }
    room = room_for(values, options_.bucket_bytes);
    return 0.0;
  });
  copy_from(agreement_, 0, values, options_.bucket_bytes, room);
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
