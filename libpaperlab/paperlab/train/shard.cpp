#include "paperlab/train/shard.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "paperlab/core/json.h"
#include "paperlab/train/buckets.h"

namespace paperlab::train {
namespace {

// Names, dtypes and shapes of a state.
std::string description(const NamedState& state) {
  Json list = Json::array();
  for (const auto& [name, value] : state) {
    list.push_back({name, static_cast<int>(value.scalar_type()), value.sizes().vec()});
  }
  return list.dump();
}

struct Described {
  std::string name;
  at::ScalarType type;
  std::vector<std::int64_t> shape;
};

std::vector<Described> described(const std::string& text) {
  std::vector<Described> all;
  for (const Json& one : Json::parse(text)) {
    all.push_back({one[0], static_cast<at::ScalarType>(one[1].get<int>()), one[2]});
  }
  return all;
}

// The tensor of one process, in each.
at::Tensor tensor_of(const Agreement& agreement, std::int64_t process, const Described& what,
                     const at::Tensor& own) {
  const at::Tensor value =
      agreement.rank() == process
          ? own.to(agreement.device()).contiguous()
          : at::empty(what.shape, at::TensorOptions(what.type).device(agreement.device()));
  if (value.numel() > 0) {
    agreement.processes().start_copy(value, process)();
  }
  return value;
}

// Of NAME.slot, where slot has no dot.
std::string parameter_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

}  // namespace

std::vector<std::int64_t> plan_owners(std::span<const std::int64_t> sizes,
                                      std::int64_t num_processes) {
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return sizes[a] != sizes[b] ? sizes[a] > sizes[b] : a < b;
  });
  std::vector<std::int64_t> loads(static_cast<std::size_t>(num_processes), 0);
  std::vector<std::int64_t> owners(sizes.size());
  for (const std::size_t i : order) {
    const auto least = std::min_element(loads.begin(), loads.end());
    owners[i] = least - loads.begin();
    *least += sizes[i];
  }
  return owners;
}

void copy_from(const Agreement& agreement, std::int64_t process,
               const std::vector<at::Tensor>& tensors, std::int64_t bytes) {
  if (agreement.is_alone() || tensors.empty()) {
    return;
  }
  const at::NoGradGuard no_grad;
  std::vector<std::int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    sizes.push_back(static_cast<std::int64_t>(tensor.nbytes()));
  }
  const bool gives = agreement.rank() == process;
  for (const std::vector<std::int64_t>& members : plan_buckets(sizes, bytes)) {
    std::int64_t length = 0;
    for (const std::int64_t i : members) {
      length += tensors[static_cast<std::size_t>(i)].numel();
    }
    const at::Tensor piece = at::empty({length}, tensors.front().options().requires_grad(false));
    const auto each = [&](const auto& copy) {
      std::int64_t offset = 0;
      for (const std::int64_t i : members) {
        const at::Tensor tensor = tensors[static_cast<std::size_t>(i)].detach();
        copy(piece.narrow(0, offset, tensor.numel()).view(tensor.sizes()), tensor);
        offset += tensor.numel();
      }
    };
    if (gives) {
      each([](const at::Tensor& place, const at::Tensor& tensor) { place.copy_(tensor); });
    }
    agreement.processes().start_copy(piece, process)();
    if (!gives) {
      each([](const at::Tensor& place, const at::Tensor& tensor) { tensor.copy_(place); });
    }
  }
}

NamedState gathered_state(const Agreement& agreement, const NamedState& own) {
  const at::NoGradGuard no_grad;
  const std::vector<std::string> descriptions = agreement.texts(description(own));
  NamedState all;
  for (std::size_t process = 0; process < descriptions.size(); ++process) {
    const std::vector<Described> list = described(descriptions[process]);
    for (std::size_t i = 0; i < list.size(); ++i) {
      const auto from = static_cast<std::int64_t>(process);
      const bool is_mine = agreement.rank() == from;
      const at::Tensor value =
          tensor_of(agreement, from, list[i], is_mine ? own[i].second : at::Tensor());
      if (agreement.is_first()) {
        all.emplace_back(list[i].name, value.cpu());
      }
    }
  }
  return all;
}

NamedState scattered_state(const Agreement& agreement, const NamedState& state,
                           const std::vector<std::string>& names,
                           const std::vector<std::string>& all_names) {
  const at::NoGradGuard no_grad;
  const std::vector<Described> list = described(agreement.text_of_first(description(state)));
  const std::set<std::string> mine(names.begin(), names.end());
  const std::set<std::string> known(all_names.begin(), all_names.end());
  NamedState own;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string parameter = parameter_of(list[i].name);
    const at::Tensor value =
        tensor_of(agreement, 0, list[i], agreement.is_first() ? state[i].second : at::Tensor());
    if (mine.count(parameter) != 0 || (agreement.is_first() && known.count(parameter) == 0)) {
      own.emplace_back(list[i].name, value);
    }
  }
  return own;
}

}  // namespace paperlab::train
