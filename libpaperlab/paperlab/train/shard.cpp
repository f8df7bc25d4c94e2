#include "paperlab/train/shard.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
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

// Gives tensors of one process to the others. All memory is there before the first is given: who
// fails in between would leave the others waiting.
class Exchange {
 public:
  Exchange(const Agreement& agreement, const std::vector<std::vector<Described>>& lists)
      : agreement_(agreement) {
    std::map<at::ScalarType, std::int64_t> largest;
    for (const std::vector<Described>& list : lists) {
      for (const Described& one : list) {
        std::int64_t& most = largest[one.type];
        most = std::max(most, c10::multiply_integers(one.shape));
      }
    }
    for (const auto& [type, length] : largest) {
      room_[type] = at::empty({length}, at::TensorOptions(type).device(agreement.device()));
    }
  }

  // Valid until the next one is given.
  at::Tensor operator()(std::int64_t process, const Described& what, const at::Tensor& own) const {
    const at::Tensor value =
        room_.at(what.type).narrow(0, 0, c10::multiply_integers(what.shape)).view(what.shape);
    if (agreement_.rank() == process) {
      value.copy_(own);
    }
    if (value.numel() > 0) {
      agreement_.processes().start_copy(value, process)();
    }
    return value;
  }

 private:
  const Agreement& agreement_;
  std::map<at::ScalarType, at::Tensor> room_{};
};

struct Piece {
  std::vector<std::int64_t> members;
  std::int64_t length = 0;  // elements
};

std::vector<Piece> pieces_of(const std::vector<at::Tensor>& tensors, std::int64_t bytes) {
  std::vector<std::int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    sizes.push_back(static_cast<std::int64_t>(tensor.nbytes()));
  }
  std::vector<Piece> pieces;
  for (std::vector<std::int64_t>& members : plan_buckets(sizes, bytes)) {
    std::int64_t length = 0;
    for (const std::int64_t i : members) {
      length += tensors[static_cast<std::size_t>(i)].numel();
    }
    pieces.push_back({std::move(members), length});
  }
  return pieces;
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

at::Tensor room_for(const std::vector<at::Tensor>& tensors, std::int64_t bytes) {
  std::int64_t longest = 0;
  for (const Piece& piece : pieces_of(tensors, bytes)) {
    longest = std::max(longest, piece.length);
  }
  return at::empty({longest}, tensors.front().options().requires_grad(false));
}

void copy_from(const Agreement& agreement, std::int64_t process,
               const std::vector<at::Tensor>& tensors, std::int64_t bytes, const at::Tensor& room) {
  if (agreement.is_alone()) {
    return;
  }
  const at::NoGradGuard no_grad;
  const bool gives = agreement.rank() == process;
  for (const Piece& piece : pieces_of(tensors, bytes)) {
    const at::Tensor all = room.narrow(0, 0, piece.length);
    const auto each = [&](const auto& copy) {
      std::int64_t offset = 0;
      for (const std::int64_t i : piece.members) {
        const at::Tensor tensor = tensors[static_cast<std::size_t>(i)].detach();
        copy(all.narrow(0, offset, tensor.numel()).view(tensor.sizes()), tensor);
        offset += tensor.numel();
      }
    };
    if (gives) {
      each([](const at::Tensor& place, const at::Tensor& tensor) { place.copy_(tensor); });
    }
    agreement.processes().start_copy(all, process)();
    if (!gives) {
      each([](const at::Tensor& place, const at::Tensor& tensor) { tensor.copy_(place); });
    }
  }
}

NamedState gathered_state(const Agreement& agreement, const NamedState& own) {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<Described>> lists;
  for (const std::string& text : agreement.texts(description(own))) {
    lists.push_back(described(text));
  }
  std::optional<Exchange> exchange;
  NamedState all;
  agreement.together([&] {
    exchange.emplace(agreement, lists);
    for (const std::vector<Described>& list : lists) {
      for (const Described& one : list) {
        if (agreement.is_first()) {
          all.emplace_back(one.name, at::empty(one.shape, one.type));
        }
      }
    }
    return 0.0;
  });
  std::size_t number = 0;
  for (std::size_t process = 0; process < lists.size(); ++process) {
    const auto from = static_cast<std::int64_t>(process);
    for (std::size_t i = 0; i < lists[process].size(); ++i, ++number) {
      const at::Tensor mine = agreement.rank() == from ? own[i].second : at::Tensor();
      const at::Tensor value = (*exchange)(from, lists[process][i], mine);
      if (agreement.is_first()) {
        all[number].second.copy_(value);
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
  const auto is_kept = [&](const Described& one) {
    const std::string parameter = parameter_of(one.name);
    return mine.count(parameter) != 0 || (agreement.is_first() && known.count(parameter) == 0);
  };
  std::optional<Exchange> exchange;
  NamedState own;
  agreement.together([&] {
    exchange.emplace(agreement, std::vector<std::vector<Described>>{list});
    for (const Described& one : list) {
      if (is_kept(one)) {
        const at::TensorOptions options(one.type);
        own.emplace_back(one.name, at::empty(one.shape, options.device(agreement.device())));
      }
    }
    return 0.0;
  });
  std::size_t number = 0;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const at::Tensor value =
        (*exchange)(0, list[i], agreement.is_first() ? state[i].second : at::Tensor());
    if (is_kept(list[i])) {
      own[number++].second.copy_(value);
    }
  }
  return own;
}

}  // namespace paperlab::train
