#include "tests/support/attention_emulation.h"

#include <cstddef>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "kernels/attention/block_backward_query.h"
#include "kernels/attention/block_plain_backward.h"
#include "kernels/attention/cuda_launch.h"

namespace paperlab::kernels {
namespace {

using test::AttentionTensors;
using test::EmulatedOrder;

// A block's shared memory.
template <class Memory>
class Shared {
 public:
  Shared() { std::memset(static_cast<void*>(memory_.get()), 0xFF, sizeof(Memory)); }
  Memory& get() { return *memory_; }

 private:
  std::unique_ptr<Memory> memory_ = std::make_unique_for_overwrite<Memory>();
};

struct Empty {};

// Runs block(team, memory, index) for every block with threads.
template <class Registers, class Memory, class Block>
void run_threads(std::int64_t num_blocks, int num_threads, EmulatedOrder order, Block block) {
  for (std::int64_t index = 0; index < num_blocks; ++index) {
    Shared<Memory> memory;
    HostTeam<Registers> team(num_threads, order == EmulatedOrder::kReversed);
    std::memset(static_cast<void*>(team.registers.data()), 0xFF,
                team.registers.size() * sizeof(Registers));
    block(team, memory.get(), index);
  }
}

// The same with warps, none of which may leave a copy behind.
template <class Registers, class Memory, class Block>
void run_warps(std::int64_t num_blocks, EmulatedOrder order, Block block) {
  for (std::int64_t index = 0; index < num_blocks; ++index) {
    Shared<Memory> memory;
    HostWarps<Registers> team(kBlockWarps, order == EmulatedOrder::kReversed);
    block(team, memory.get(), index);
    for (const HostLanes& warp : team.warps) {
      if (!warp.copies.is_empty()) {
        throw std::logic_error("a block ends with copies under way");
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------

template <class S>
void run_plain_forward(const ForwardLaunch& launch, EmulatedOrder order) {
  run_threads<PlainForwardRegisters<S>, PlainForwardMemory<S>>(
      num_forward_blocks(launch, S::kEdge), S::kThreads, order,
      [&](auto& team, auto& memory, std::int64_t index) {
        plain_forward_block<S>(team, memory, launch, forward_task(launch, index, S::kEdge));
      });
}

template <class S>
void run_plain_backward(const BackwardLaunch& launch, EmulatedOrder order) {
  const AttentionLaunch& of = launch.attention;
  run_threads<PlainKeyRegisters<S>, PlainBackwardMemory<S>>(
      num_key_tasks(of.in, S::kEdge), S::kThreads, order,
      [&](auto& team, auto& memory, std::int64_t index) {
        plain_key_block<S>(team, memory, launch, key_task(of, index, S::kEdge));
      });
  run_threads<PlainQueryRegisters<S>, PlainBackwardMemory<S>>(
      num_row_tiles(of, S::kEdge), S::kThreads, order,
      [&](auto& team, auto& memory, std::int64_t index) {
        plain_query_block<S>(team, memory, launch, row_tile(of, index, S::kEdge));
      });
}

template <class S>
void run_forward(const ForwardLaunch& launch, EmulatedOrder order) {
  run_warps<ForwardRegisters<S, HostLanes>, ForwardMemory<S>>(
      num_forward_blocks(launch, S::kRows), order,
      [&](auto& team, auto& memory, std::int64_t index) {
        forward_block<S>(team, memory, launch, index);
      });
}

template <class S>
void run_keys(const BackwardLaunch& launch, EmulatedOrder order) {
  run_warps<KeyRegisters<S, HostLanes>, KeyMemory<S>>(
      num_key_tasks(launch.attention.in, kOwnRows), order,
      [&](auto& team, auto& memory, std::int64_t index) {
        key_block<S>(team, memory, launch, index);
      });
}

template <class S>
void run_queries(const BackwardLaunch& launch, EmulatedOrder order) {
  run_warps<QueryRegisters<S, HostLanes>, QueryMemory<S>>(
      num_row_tiles(launch.attention, kOwnRows), order,
      [&](auto& team, auto& memory, std::int64_t index) {
        query_block<S>(team, memory, launch, index);
      });
}

// ---------------------------------------------------------------------------------------------

template <class E, int kWidth>
void run_forward_width(const ForwardLaunch& launch, EmulatedOrder order) {
  if (launch.partials != nullptr) {
    run_forward<DecodeShape<E, kWidth>>(launch, order);
  } else {
    run_forward<TileShape<E, kWidth>>(launch, order);
  }
}

template <class E>
void run_forward_of(const ForwardLaunch& launch, EmulatedOrder order) {
  const std::int64_t head_dim = launch.attention.in.query.size[3];
  if constexpr (sizeof(E) == 2) {
    switch (padded_width(head_dim)) {
      case 64:
        return run_forward_width<E, 64>(launch, order);
      case 128:
        return run_forward_width<E, 128>(launch, order);
      default:
        return run_forward_width<E, 256>(launch, order);
    }
  } else if constexpr (sizeof(E) == 8) {
    run_plain_forward<PlainDouble>(launch, order);
  } else if (head_dim <= 128) {
    run_plain_forward<PlainForward128>(launch, order);
  } else {
    run_plain_forward<PlainForward256>(launch, order);
  }
}

template <class E>
void run_backward_of(const BackwardLaunch& launch, EmulatedOrder order) {
  const std::int64_t head_dim = launch.attention.in.query.size[3];
  if constexpr (sizeof(E) == 2) {
    switch (padded_width(head_dim)) {
      case 64:
        run_keys<BothShape<E, 64>>(launch, order);
        return run_queries<QueryTileShape<E, 64>>(launch, order);
      case 128:
        run_keys<BothShape<E, 128>>(launch, order);
        return run_queries<QueryTileShape<E, 128>>(launch, order);
      default:
        run_keys<KeyShape<E, 256, 32, false, true>>(launch, order);
        run_keys<KeyShape<E, 256, 32, true, false>>(launch, order);
        return run_queries<QueryTileShape<E, 256>>(launch, order);
    }
  } else if constexpr (sizeof(E) == 8) {
    run_plain_backward<PlainDouble>(launch, order);
  } else if (head_dim <= 128) {
    run_plain_backward<PlainBackward128>(launch, order);
  } else {
    run_plain_backward<PlainBackward256>(launch, order);
  }
}

std::int64_t num_rows(const AttentionInputs& in) {
  return in.query.size[0] * in.query.size[1] * in.query.size[2];
}

// `count` statistics of a dtype, which start as NaN.
std::vector<std::byte> workspace(std::int64_t count, DType dtype) {
  const std::int64_t bytes = count * (dtype == DType::kFloat64 ? 8 : 4);
  return std::vector<std::byte>(static_cast<std::size_t>(bytes), std::byte{0xFF});
}

void emulate_forward(AttentionTensors& tensors, EmulatedOrder order) {
  const AttentionInputs in = tensors.inputs();
  check_attention(in);
  std::vector<std::byte> partials = workspace(
      num_rows(in) * key_runs(in).count * partial_width(in.query.size[3]), in.query.dtype);
  const ForwardLaunch launch = forward_launch(in, tensors.outputs(), partials.data());
  if (num_rows(in) == 0) {
    return;
  }
  with_element(in.query.dtype, [&]<class E>(ElementType<E>) {
    run_forward_of<E>(launch, order);
    if (launch.partials != nullptr) {
      run_threads<Empty, Empty>(
          num_rows(in), kMergeThreads, order,
          [&](auto& team, auto&, std::int64_t index) { merge_block<E>(team, launch, index); });
    }
  });
}

void emulate_backward(AttentionTensors& tensors, EmulatedOrder order) {
  const AttentionInputs in = tensors.inputs();
  check_attention(in);
  std::vector<std::byte> delta = workspace(num_rows(in), in.query.dtype);
  const BackwardLaunch launch =
      backward_launch(in, tensors.backward_inputs(), tensors.gradients(), delta.data());
  if (in.query.size[0] == 0 || in.query.size[1] == 0) {
    return;
  }
  with_element(in.query.dtype, [&]<class E>(ElementType<E>) {
    run_threads<DeltaRegisters<NumberOf<E>>, Empty>(
        ceil_div(num_rows(in), kDeltaRows), kDeltaThreads, order,
        [&](auto& team, auto&, std::int64_t index) {
          delta_block<E>(team, launch, index * kDeltaRows);
        });
    run_backward_of<E>(launch, order);
  });
}

}  // namespace
}  // namespace paperlab::kernels

namespace paperlab::test {

void emulate_attention(AttentionTensors& tensors, EmulatedOrder order) {
  kernels::emulate_forward(tensors, order);
}

void emulate_attention_backward(AttentionTensors& tensors, EmulatedOrder order) {
  kernels::emulate_backward(tensors, order);
}

}  // namespace paperlab::test
