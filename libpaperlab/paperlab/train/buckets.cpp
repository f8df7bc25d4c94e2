#include "paperlab/train/buckets.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <utility>

namespace paperlab::train {

namespace autograd = torch::autograd;

std::vector<std::vector<std::int64_t>> plan_buckets(std::span<const std::int64_t> sizes,
                                                    std::int64_t capacity) {
  std::vector<std::vector<std::int64_t>> plan;
  std::int64_t room = 0;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    if (plan.empty() || sizes[i] > room) {
      plan.emplace_back();
      room = capacity;
    }
    plan.back().push_back(static_cast<std::int64_t>(i));
    room -= std::min(room, sizes[i]);
  }
  return plan;
}

// Autograd has room for one such hook, which here calls the one that was there.
struct GradientBuckets::Hook final : autograd::PostAccumulateGradHook {
  Hook(GradientBuckets& of, std::int64_t i) : owner(of), index(i) {}

  void operator()(const at::Tensor& parameter) override {
    if (previous) {
      (*previous)(parameter);
    }
    if (owner.is_armed_) {
      owner.take(index);
      owner.start_full();
    }
  }

  GradientBuckets& owner;
  std::int64_t index;
  std::unique_ptr<autograd::PostAccumulateGradHook> previous{};
};

GradientBuckets::GradientBuckets(std::vector<at::Tensor> parameters,
                                 std::shared_ptr<Processes> processes, std::int64_t bytes)
    : parameters_(std::move(parameters)),
      processes_(std::move(processes)),
      places_(parameters_.size()),
      found_(parameters_.size()) {
  std::vector<std::int64_t> sizes;
  sizes.reserve(parameters_.size());
  for (const at::Tensor& parameter : parameters_) {
    sizes.push_back(static_cast<std::int64_t>(parameter.nbytes()));
  }
  for (std::vector<std::int64_t>& members : plan_buckets(sizes, bytes)) {
    std::int64_t length = 0;
    for (const std::int64_t i : members) {
      places_[static_cast<std::size_t>(i)] = {buckets_.size(), length};
      length += parameters_[static_cast<std::size_t>(i)].numel();
    }
    const at::TensorOptions options = parameters_.front().options().requires_grad(false);
    const bool is_double = parameters_.front().scalar_type() == at::kDouble;
    buckets_.push_back({std::move(members),
                        at::empty({length}, options.dtype(is_double ? at::kDouble : at::kFloat))});
  }
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    auto hook = std::make_unique<Hook>(*this, static_cast<std::int64_t>(i));
    hooks_.push_back(hook.get());
    auto& slot = autograd::impl::post_acc_grad_hooks(parameters_[i]);
    hook->previous = std::move(slot);
    autograd::impl::set_post_acc_grad_hooks(parameters_[i], std::move(hook));
  }
}

GradientBuckets::~GradientBuckets() {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    auto& slot = autograd::impl::post_acc_grad_hooks(parameters_[i]);
    if (slot.get() == hooks_[i]) {  // else somebody has put another one there since
      slot = std::move(hooks_[i]->previous);
    }
  }
}

void GradientBuckets::begin() {
  for (Bucket& bucket : buckets_) {
    bucket.num_missing = static_cast<std::int64_t>(bucket.members.size());
    bucket.wait = nullptr;
  }
  std::fill(found_.begin(), found_.end(), false);
  num_started_ = 0;
  is_armed_ = false;
}

at::Tensor GradientBuckets::place_of(std::int64_t index) const {
  const Place& place = places_[static_cast<std::size_t>(index)];
  const at::Tensor& parameter = parameters_[static_cast<std::size_t>(index)];
  return buckets_[place.bucket]
      .sums.narrow(0, place.offset, parameter.numel())
      .view(parameter.sizes());
}

// Backward calls the hooks of one device from one thread.
void GradientBuckets::take(std::int64_t index) {
  const auto i = static_cast<std::size_t>(index);
  const at::Tensor& grad = parameters_[i].grad();
  if (found_[i] || !grad.defined()) {
    return;
  }
  const at::NoGradGuard no_grad;
  place_of(index).copy_(grad);
  parameters_[i].mutable_grad().reset();
  found_[i] = true;
  --buckets_[places_[i].bucket].num_missing;
}

void GradientBuckets::start_next() {
  Bucket& bucket = buckets_[num_started_++];
  bucket.wait = processes_->start_sum(bucket.sums);
}

// All processes begin the sums in the same order, whichever bucket is full first.
void GradientBuckets::start_full() {
  while (num_started_ < buckets_.size() && buckets_[num_started_].num_missing == 0) {
    start_next();
  }
}

void GradientBuckets::finish() {
  is_armed_ = false;
  const at::NoGradGuard no_grad;
  while (num_started_ < buckets_.size()) {
    for (const std::int64_t index : buckets_[num_started_].members) {
      take(index);  // of hooks that were exchanged
      if (!found_[static_cast<std::size_t>(index)]) {
        place_of(index).zero_();
      }
    }
    start_next();
  }
  for (const Bucket& bucket : buckets_) {
    bucket.wait();
  }
}

void GradientBuckets::assign(std::span<const double> counts) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& parameter = parameters_[i];
    if (counts[i] > 0.0) {
      const at::Tensor sum = place_of(static_cast<std::int64_t>(i));
      const bool fits = sum.scalar_type() == parameter.scalar_type() && parameter.is_contiguous();
      parameter.mutable_grad() = fits ? sum : at::empty_like(parameter).copy_(sum);
    }
  }
}

}  // namespace paperlab::train
