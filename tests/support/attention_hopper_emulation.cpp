#include "tests/support/attention_hopper_emulation.h"

#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/attention/block_hopper_rows.h"
#include "kernels/attention/cuda_hopper.h"
#include "kernels/attention/cuda_launch.h"
#include "tests/support/attention_hopper_roles.h"
#include "tests/support/shared_accesses.h"

namespace paperlab::kernels {
namespace {

using test::Roles;

// kCount values of every thread of a group.
template <class T, int kCount>
struct GroupValues {
  T value[kGroup][kCount];

  T (&of(int thread)) [kCount] { return value[thread]; } const T (&of(int thread) const)[kCount] {
    return value[thread];
  }
};

// Of one of the two groups that take turns.
struct Turn {
  Barrier barrier;
  int num_given = 0;
  int num_taken = 0;
};

// A group that is a role; memory: the block's, of so many bytes. Of wgmma.h's DeviceGroup it has
// every function.
class HostGroup {
 public:
  template <class T, int kCount>
  using Fragment = GroupValues<T, kCount>;

  HostGroup(Roles& roles, Turn (&turns)[2], const void* memory, std::size_t bytes)
      : roles_(roles),
        turns_(turns),
        memory_(static_cast<const char*>(memory)),
        is_reversed_(roles.is_late()),
        accesses_(bytes) {}
  ~HostGroup() = default;
  HostGroup(const HostGroup&) = delete;
  HostGroup& operator=(const HostGroup&) = delete;

  template <class Phase>
  void lanes(Phase&& phase) const {
    for (int i = 0; i < kGroup; ++i) {
      thread_ = is_reversed_ ? kGroup - 1 - i : i;
      phase(thread_);
    }
  }
  void converge() const {}
  template <int kCount, class Op>
  void over_quad(GroupValues<float, kCount>& x, Op op) const {
    for (const int apart : {2, 1}) {
      const GroupValues<float, kCount> old = x;
      for (int thread = 0; thread < kGroup; ++thread) {
        for (int i = 0; i < kCount; ++i) {
          x.of(thread)[i] = op(old.of(thread)[i], old.of(thread ^ apart)[i]);
        }
      }
    }
  }

  void copy(std::uint16_t* tile, int at, const void* from, bool is_there) {
    accesses_.write(address(tile + at), thread_);
    copies_.add(tile + at, from, is_there);
  }
  void write(std::uint16_t* to, std::uint32_t word) {
    accesses_.write(address(to), thread_);
    store_word(to, word);
  }
  Pack read(const std::uint16_t* from) const {
    accesses_.read(address(from), thread_);
    return load_pack(from);
  }
  void show() {
    copies_.finish();
    accesses_.barrier(/*shows_writes=*/true);
  }
  void sync() { accesses_.barrier(/*shows_writes=*/false); }

  void await(Barrier& at, int phase) const { roles_.await(at, phase); }
  void await_all(Barrier& at, int phase) const { roles_.await(at, phase); }
  void await_turn(int of) { roles_.await(turns_[of].barrier, turns_[of].num_taken++); }
  void give_turn(int to) {
    if (++turns_[to].num_given > turns_[to].num_taken + 1) {
      throw std::logic_error("a turn is given again before it was taken");
    }
    roles_.arrive(turns_[to].barrier);
  }
  void arrive(Barrier& at) const { roles_.arrive(at); }
  void expect(Barrier& at, int bytes) const { roles_.expect(at, bytes); }
  void arrive_by_warps(Barrier& at) const {
    for (int warp = 0; warp < kGroup / kWarp; ++warp) {
      roles_.arrive(at);
    }
  }
  void fetch(const BoxTensor& tensor, const BoxPlace& from, std::uint16_t* to, Barrier& at) const {
    const std::uint32_t place = address(to);
    if (place % kSwizzleBytes != 0) {
      throw std::logic_error("a box goes to an address that its swizzle does not fit");
    }
    roles_.fetch(at, std::int64_t{kBoxRowBytes} * tensor.box_rows,
                 [tensor, from, to, place] { fetch_box_host(tensor, from, to, place); });
  }

  std::uint32_t address(const void* shared) const {
    return static_cast<std::uint32_t>(static_cast<const char*>(shared) - memory_);
  }

  template <class... Registers>
  void begin_products(Registers&...) const {}
  template <class E, int kTiles>
  void multiply_rows(GroupValues<float, 4> (&c)[kTiles], std::uint64_t a, std::uint64_t b,
                     bool keeps) {
    const auto run = [=, this, &c] {
      if (!keeps) {
        std::memset(static_cast<void*>(c), 0, sizeof(c));
      }
      multiply_group_host<8 * kTiles>(
          [&](int row, int k) { return element<E>(element_address(a, false, row, k)); },
          [&](int column, int k) { return element<E>(element_address(b, false, column, k)); },
          [&](int thread, int n) { return c[n].of(thread); });
    };
    for_each_chunk(a, [this](std::uint32_t place) { accesses_.begin_product(place); });
    begin({run, a});
  }
  template <class E, int kTiles>
  void multiply_columns(GroupValues<float, 4> (&c)[kTiles], const GroupValues<std::uint32_t, 4>& a,
                        std::uint64_t b) {
    const auto run = [=, this, &a, &c] {
      double left[kGroupRows][16];
      for (int thread = 0; thread < kGroup; ++thread) {
        for (int i = 0; i < 8; ++i) {
          const MatrixPlace at = group_place(thread, place_in_a(thread % kWarp, i));
          left[at.row][at.column] = to_number(E{half_of(a.of(thread), i)});
        }
      }
      multiply_group_host<8 * kTiles>(
          [&](int row, int k) { return left[row][k]; },
          [&](int column, int k) { return element<E>(element_address(b, true, column, k)); },
          [&](int thread, int n) { return c[n].of(thread); });
    };
    begin({run, {}});
  }
  void commit() { products_.push_back(std::exchange(begun_, {})); }
  template <int kLeft, class... Registers>
  void finish(Registers&...) {
    while (products_.size() > kLeft) {
      for (const Product& product : products_.front()) {
        if (!roles_.is_late()) {
          product.run();
        }
        if (product.rows) {
          for_each_chunk(*product.rows, [this](std::uint32_t at) { accesses_.end_product(at); });
        }
      }
      products_.pop_front();
    }
  }

  // A role ends with nothing under way.
  void check_end() const {
    if (!copies_.is_empty() || !products_.empty() || !begun_.empty()) {
      throw std::logic_error("a group ends with copies or products under way");
    }
  }

 private:
  struct Product {
    std::function<void()> run;
    std::optional<std::uint64_t> rows;  // the left matrix, if it lies in shared memory
  };

  // The 16-byte chunks of a left matrix.
  template <class Body>
  static void for_each_chunk(std::uint64_t matrix, Body body) {
    for (int row = 0; row < kGroupRows; ++row) {
      for (const int inner : {0, kChunk}) {
        body(element_address(matrix, false, row, inner));
      }
    }
  }
  template <class E>
  double element(std::uint32_t place) const {
    E element;
    std::memcpy(&element, memory_ + place, sizeof(element));
    return to_number(element);
  }
  void begin(Product product) {
    if (roles_.is_late()) {
      product.run();
    }
    begun_.push_back(std::move(product));
  }

  Roles& roles_;
  Turn (&turns_)[2];
  const char* memory_;
  bool is_reversed_;
  test::SharedAccesses accesses_;
  mutable int thread_ = 0;  // whose turn it is
  PendingCopies copies_;
  std::vector<Product> begun_;
  std::deque<std::vector<Product>> products_;
};

template <class S>
void run_block(const ForwardLaunch& launch, const KeyMaps<BoxTensor>& maps, std::int64_t index,
               bool is_late) {
  const auto memory = std::make_unique_for_overwrite<HopperMemory<S>>();
  std::memset(static_cast<void*>(memory.get()), 0xFF, sizeof(*memory));
  Roles roles(is_late);
  Turn turns[2] = {};
  for (Turn& turn : turns) {
    roles.init(turn.barrier, 1);  // the other group as a whole
  }
  HostTeam<NoRegisters> team(S::kThreads, is_late);
  begin_hopper<S>(team, *memory, launch, index,
                  [&](Barrier& barrier, int arrivals) { roles.init(barrier, arrivals); });
  std::vector<std::function<void()>> bodies = {[&] {
    HostGroup group(roles, turns, memory.get(), sizeof(*memory));
    feed_readers<S>(group, *memory, launch.attention, maps);
    group.check_end();
  }};
  for (int number = 0; number < S::kReaders; ++number) {
    bodies.emplace_back([&, number] {
      HostGroup group(roles, turns, memory.get(), sizeof(*memory));
      using Registers = HopperRegisters<S, HostGroup>;
      const auto own = std::make_unique_for_overwrite<Registers>();
      std::memset(static_cast<void*>(own.get()), 0xFF, sizeof(Registers));
      read_tiles<S>(group, number, *memory, launch, *own);
      group.check_end();
    });
  }
  roles.run(std::move(bodies));
  for (const Turn& turn : turns) {
    if (turn.num_given != turn.num_taken) {
      throw std::logic_error("a turn is left over");
    }
  }
}

template <class S>
void run_blocks(const ForwardLaunch& launch, bool is_late) {
  const AttentionInputs& in = launch.attention.in;
  const auto boxes = [&](const ConstTensorView& view) {
    return view.data == nullptr ? BoxTensor{} : key_boxes(view, S::kKeys);
  };
  const KeyMaps<BoxTensor> maps = {boxes(in.key), boxes(in.value), boxes(in.prefix_key),
                                   boxes(in.prefix_value)};
  for (std::int64_t index = 0; index < num_forward_blocks(launch, S::kRows); ++index) {
    run_block<S>(launch, maps, index, is_late);
  }
}

template <class E>
void run(const ForwardLaunch& launch, bool is_late) {
  if (launch.attention.in.query.size[3] <= 64) {
    run_blocks<HopperShape<E, 64>>(launch, is_late);
  } else {
    run_blocks<HopperShape<E, 128>>(launch, is_late);
  }
}

}  // namespace
}  // namespace paperlab::kernels

namespace paperlab::test {

bool emulate_attention_hopper(AttentionTensors& tensors, EmulatedOrder order) {
  using kernels::DType;
  const kernels::AttentionInputs in = tensors.inputs();
  kernels::check_attention(in);
  // Any address: whether rows are split over their keys.
  const kernels::ForwardLaunch launch = kernels::forward_launch(in, tensors.outputs(), &tensors);
  const bool is_late = order == EmulatedOrder::kReversed;
  const bool is_half = in.query.dtype == DType::kBFloat16 || in.query.dtype == DType::kFloat16;
  if (!is_half || !kernels::fits_hopper(launch)) {
    return false;
  }
  if (in.query.dtype == DType::kBFloat16) {
    kernels::run<kernels::BFloat16>(launch, is_late);
  } else {
    kernels::run<kernels::Float16>(launch, is_late);
  }
  return true;
}

}  // namespace paperlab::test
